"""``host_client run`` and ``resume`` send files with the prompt, or say at once that they cannot."""

from __future__ import annotations

from pathlib import Path

from host_client.scripted_model import ScriptedModel, parse_script
from tests.e2e.test_commands import piped
from tests.e2e.test_e2b_commands import host_client
from tests.host.test_takeover import TWO_TURNS
from tests.support.attachments import PDF, PNG, document, image, pdf, sent_blocks
from tests.support.hosts import e2b_lab


def test_files_are_sent_with_the_prompt_and_shown(tmp_path: Path) -> None:
    (tmp_path / "plan.pdf").write_bytes(PDF)
    (tmp_path / "a\nb.txt").write_text("words")
    attach = ("--attach", str(tmp_path / "plan.pdf"), "--attach", str(tmp_path / "a\nb.txt"))
    with ScriptedModel(parse_script(TWO_TURNS)) as model:
        done = piped(tmp_path, "run", "look", *attach, model=model)
        [request] = model.requests
    assert done.returncode == 0, done.stderr
    assert sent_blocks(request.body) == [
        pdf(PDF, "plan.pdf"),
        document("words", "a b.txt"),
        {"type": "text", "text": "look"},
    ]
    shown = f"attached plan.pdf (application/pdf, {len(PDF)} bytes), a b.txt (text/plain, 5 bytes)"
    assert shown in done.stdout.decode()


def test_a_file_that_cannot_be_sent_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\3\4\0\0")
    with ScriptedModel(parse_script(TWO_TURNS)) as model:
        for args in (("run", "look"), ("resume", "0" * 36, "look")):
            done = piped(tmp_path, *args, "--attach", str(tmp_path / "a.zip"), model=model)
            assert (done.returncode, done.stdout) == (2, b"")
            assert done.stderr.decode() == (
                f"host_client {args[0]}: the attachment 'a.zip' is none of PNG, JPEG, GIF, WebP, PDF and UTF-8 text:"
                " convert it to one of them\n"
            )
        assert model.requests == []


def test_a_resumed_session_takes_files_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with e2b_lab(TWO_TURNS) as lab:
        first = host_client(lab, tmp_path, "run", "go", "--keep", "pause")
        assert first.returncode == 0, first.stdout + first.stderr
        session = first.stdout.rpartition("host_client resume ")[2].split()[0]
        again = host_client(lab, tmp_path, "resume", session, "look", "--attach", str(tmp_path / "a.png"), "--end")
        assert again.returncode == 0, again.stdout + again.stderr
        assert sent_blocks(lab.model.requests[-1].body) == [image(PNG), {"type": "text", "text": "look\n"}]
