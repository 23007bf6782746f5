"""Redact values that stand under a secret's name, such as ``DB_PASSWORD=…`` or ``"client_secret": "…"``. Pure.

The name stays and the value goes: where a value may be a secret it is taken for one. References to a value (a variable,
a call, a placeholder, a path) stay.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ._secret_tokens import REDACTED

WORDS = ("pass", "pwd", "secret", "token", "key", "cred", "auth", "cookie", "bearer", "basic")
"""Parts, in small letters, of all names of secrets and of schemes."""

SECRET_ENDINGS = (
    *("password", "passwd", "passphrase", "passcode", "passwort", "secret", "token"),
    *("apikey", "accesskey", "secretkey", "privatekey", "credential", "credentials"),
)
"""A part of a name that ends so names a secret: ``PGPASSWORD``, ``client_secret``."""

SECRET_PARTS = frozenset({"auth", "creds", "cred", "oauth", "passwords", "pwd", "secrets"})
"""Parts that name a secret only as a whole word: ``auth``, but not ``author``."""

SECRET_LAST_PARTS = frozenset({"pass"})
"""Parts that name a secret at the end of a longer name: ``SMTP_PASS``, but not ``pass: 12``."""

KEYS = frozenset(
    {
        *("access", "account", "admin", "api", "app", "application", "auth", "client", "consumer", "deploy"),
        *("encryption", "license", "master", "private", "secret", "service", "shared", "signing", "ssh", "storage"),
        *("subscription", "webhook"),
    }
)
"""Words that with ``key`` name a secret: ``API_KEY``, ``AccountKey``, ``secret key``."""

OPEN_KEYS = frozenset(
    {
        *("cache", "column", "dedup", "foreign", "group", "hash", "idempotency", "index", "lock", "map", "object"),
        *("partition", "primary", "public", "range", "route", "routing", "row", "s3", "sort", "unique"),
    }
)
"""Words that with ``key`` name no secret."""

OPEN_AFTER = frozenset(
    {
        *("age", "at", "attempts", "bucket", "budget", "cache", "callback", "class", "cost", "count", "counts"),
        *("created", "date", "dir", "domain", "email", "enabled", "endpoint", "env", "error", "errors", "expiration"),
        *("expires", "expiry", "expired", "failed", "field", "file", "format", "handler", "header", "helper", "hint"),
        *("host", "id", "ids", "index", "input", "kind", "label", "len", "length", "limit", "limits", "manager"),
        *("max", "method", "middleware", "min", "mode", "name", "names", "num", "ok", "param", "path", "pattern"),
        *("placeholder", "policy", "port", "price", "provider", "realm", "ref", "refs", "regex", "required", "reset"),
        *("rotation", "rules", "scheme", "server", "size", "source", "status", "stdin", "store", "strategy"),
        *("strength", "success", "time", "timeout", "ttl", "type", "types", "updated", "uri", "url", "urls", "usage"),
        *("used", "user", "username", "validation", "validator", "var", "variable", "version"),
    }
)
"""Words after which a name tells about a secret, but not the secret: ``password_reset_url``, ``token_count``."""

OPEN_TOKENS = frozenset(
    {
        *("bos", "cancel", "cancellation", "cls", "completion", "continuation", "cost", "current", "end", "eos"),
        *("first", "input", "last", "mask", "max", "min", "next", "num", "output", "pad", "page", "per", "prev"),
        *("previous", "prompt", "public", "sep", "special", "start", "stop", "total", "unk"),
    }
)
"""Words before ``token`` of a language model, of a parser or of a list's page: ``max_token``, ``nextToken``."""

OPEN_VALUES = frozenset(
    {
        *("a", "an", "and", "any", "are", "argument", "as", "at", "be", "bool", "boolean", "bytes", "can", "cannot"),
        *("char", "const", "default", "do", "does", "empty", "expired", "false", "field", "flag", "for", "from"),
        *(
            "0",
            "1",
            "check",
            "given",
            "has",
            "if",
            "in",
            "include",
            "incorrect",
            "inherit",
            "int",
            "invalid",
            "is",
            "it",
        ),
        *("lambda", "least", "let", "may", "mismatch", "missing", "must", "needed", "nil", "no", "none", "not", "null"),
        *("number", "object", "off", "ok", "omit", "on", "optional", "option", "options", "or", "parameter"),
        *("prompt", "refused", "rejected", "required", "same-origin", "secretstr", "should", "str", "string", "that"),
        *("the", "this", "to", "true", "undefined", "unknown", "unset", "used", "value", "void", "was", "which"),
        *("will", "with", "wrong", "yes", "your", "base64", "sha256", "utf8", "utf-8", "oauth", "oauth2", "basic"),
        *("bearer", "digest", "jwt", "todo", "tbd"),
    }
)
"""Unquoted values that are no secret: words of prose, of types, and of settings."""

_ASCII_LOWER = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_MAX_KEY = 256
"""Maximum number of characters of the value of a key that only its form shows to be a secret."""

_MAX_NAME = 100
"""Maximum number of characters of a name that are looked at: its last ones."""

_ROOTS = frozenset(
    {
        *("app", "args", "cfg", "cls", "conf", "config", "context", "ctx", "data", "each", "env", "environ", "event"),
        *("github", "import", "inputs", "local", "module", "needs", "options", "opts", "os", "params", "process"),
        *("props", "req", "request", "res", "response", "secrets", "self", "session", "settings", "state", "steps"),
        *("this", "user", "values", "var", "vars"),
    }
)
"""Names with which references in code and templates begin: ``self.value``, ``secrets.NAME``."""

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_RUN = re.compile(r"[\w-]+")
_SPACED_KEY = re.compile(r"(?i:\b(?:api|access|secret|private|account|auth|encryption|signing|master|license)) \Z")
_COMMANDS = ("ENV ", "ARG ", "setx ", "setenv ", "configure set ")
"""Commands that take a name, a space and its value."""

_SEPARATOR = re.compile(
    r"""
      \\?["'`]? \]? \s{0,8}+                                                  # what closes the name
      (?: ,?\s{0,20} \\?["']? (?i:value) \\?["']? \s? [:=]                    # name: DB_PASSWORD, value: …
        | : \s? [A-Za-z_][\w.]*+ (?: \[ [\w.\[\], |]{0,40} \] )?                # password: str | None = …
          (?: \s\|\s [\w.\[\]]++ ){0,3} \s = (?![=>~])
        | => | := | \?= | \+= | = (?![=~]) | : (?![:/=])
      )
      \s{0,8} (?: [|>][+-]? \s{1,40} )?                                       # a block of YAML
    | (?P<element> > (?=[^<\s]) )                                             # <password>…
    | (?P<argument> ["'],[ ]? (?=["']) )                                      # define('DB_PASSWORD', '…')
    | (?P<told> [ ]is:?[ ] )
    | (?P<space> [ ]{1,4} )                                                   # --password …, ENV DB_PASSWORD …
    """,
    re.VERBOSE,
)

_QUOTED = re.compile(
    r"""(?P<open> (?:[bBrRuUfF]|[@$])? (?P<quote> \"""|\'\'\'|["'`]) )
        (?P<value> (?: \\. | (?!(?P=quote)|\\). ){0,4096}+ ) (?P<close> (?P=quote) )?""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"""(?P<open>\\(?P<quote>["']))(?P<value>(?:\\\\.|[^\\"'])*+)(?P<close>\\(?P=quote))?""")

# A comma, a semicolon or an ampersand ends a value if the next name follows.
_BARE = re.compile(
    r"""(?: [^\s"'`,;&<>\\] | [,;&] (?![\s"'`]|[\w.%\ -]{1,40}[:=]|\Z) | <(?!/) | >(?!\s|\Z) | \\(?![nrt"']) )+""",
    re.VERBOSE,
)
_ELEMENT = re.compile(r"[^<]+(?=</)")
_CLOSER = re.compile(r"\s*[)\],;+]|\s+\Z")

_PLACEHOLDER = re.compile(
    r"""
      \[redacted\]
    | \$[A-Za-z_{(] | %[A-Za-z_]\w*% | %[s(] | \{\{ | \{[\w.]*\} | <[A-Za-z/!][^<>\n]{0,80}>
    | \*{3} | [xX]{4} | \.{3} | … | •{2} | _{3} | \#{3}
    | (?i: your|insert|replace|change|enter|put ) (?: [-_ ] | (?-i:[A-Z]) ) (?i:\w)
    | (?: ~/ | \.{1,2}/ | /(?:home|root|etc|var|usr|run|tmp|opt|srv|mnt|dev|proc|sys|app|workspace|Users|private)\b )
    | arn:aws | op:// | vault: | ssm: | secretsmanager: | keyring: | env: | file: | projects/\w
    | https?://[^\s/@]++(?![^\s/]*@)(?:[/\s"']|\Z)
    """,
    re.VERBOSE,
)
"""The beginnings of values that only stand for a secret or say where it is."""

_CODE = re.compile(
    r"""
      [\[{(] | !(?:Ref|Sub|GetAtt|ImportValue|vault|secret|env\w*|reference)\b
    | [&*@!]? (?: (?:await|new|not|async|typeof|lambda|function) \s )? [A-Za-z_]\w*+
      (?: (?: \.|\?\.|::|-> ) \w++ ){0,12}+ (?: !?[(\[] | <[A-Za-z] )
    """,
    re.VERBOSE,
)
"""The beginnings of unquoted values that are calls or structures."""

_NEXT = re.compile(r"(?<=\s)(?:[A-Za-z_][\w.-]{0,40}=[^\s=]|--?[A-Za-z][\w-]*+(?=\s|=|\Z)|-\s|\#\s|//)")
"""The next name, flag, comment or item after a space, before which a value is empty."""

_INNER_NAME = re.compile(
    r"(?:(?:(?<=\n)|(?<=\s\s))[A-Za-z_-]{1,40}|(?:default|description|env|example|file|format|host|key|kind|login|name|path|ref|type|user(?:name)?)):(?:\s|\Z)"
)
"""A name of YAML below another one."""

_INNER_SECRET = re.compile(r"[A-Za-z_-]{1,99}+(?=\s?[:=])")

_IDENTIFIER = re.compile(r"[&*@]?[A-Za-z_]+(?:(?:\.|\?\.|::|->)[A-Za-z_]+)*")
_NUMBER = re.compile(r"[$€£]?[0-9][0-9_.,]*[kKmM%]?")
_RANDOM = re.compile(r"(?=[^0-9]*[0-9])(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])[\w+/=.-]{20,}|[0-9a-f]{32}|[0-9a-f]{40}")

_SCHEME = re.compile(
    r"(?i:(?P<long>digest|oauth|signature|aws4-hmac-sha256)|bearer|basic|token|negotiate|ntlm|api-?key|bot|splunk|ssws)\s+"
)
_COOKIES = re.compile(
    r"[\"']?(?P<pairs>[\w.$%-]++=[^\s;\"']+(?:;[ ]?(?:[\w.$%-]++=[^\s;\"']*|(?i:httponly|secure|partitioned)))*)"
)
_QUOTES = ('"', "'")
_LINE = re.compile(r"[^\r\n]*")
_LIKE_A_PASSWORD = re.compile(
    r"(?=[^\s0-9]{0,99}[0-9])(?=[^\sA-Za-z]{0,99}[A-Za-z])[^\s/()<>:\"'`]{6,}(?=[\s\"'`.,;:)!?]|\Z)"
)
_CREDENTIALS = re.compile(
    r"""
      \b (?i:bearer) \s+ (?= [A-Za-z]?[a-z._/-]*+[A-Z0-9~+=] | [a-z]{20} | [a-z]{4,}+\.[a-z]{4} ) [A-Za-z0-9._~+/=-]{8,}
    | \b (?i:basic) \s+ (?: (?=[A-Za-z+/]*+[0-9=])[A-Za-z0-9+/=]{8,}
                          | (?=[A-Za-z][a-z+/]*+[A-Z])(?:[A-Za-z+/]{4}){3,}+(?![A-Za-z0-9+/=]) )
    """,
    re.VERBOSE,
)


def may_hold_a_named_secret(text: str) -> bool:
    """Return whether `redact_named` can find something: mostly it cannot."""
    lower = text.lower()
    for word in WORDS:  # noqa: SIM110 - any() with a generator takes twice as long
        if word in lower:
            return True
    return False


def redact_named(text: str) -> str:
    """Return the text with ``[redacted]`` in place of values under a secret's name, and of bearer and basic tokens."""
    pieces: list[str] = []
    kept = position = 0
    for place in _places(text):
        if place < position:
            continue
        start, position = _name_at(text, place)
        if _kind(text[start:position][-_MAX_NAME:]) and (secret := _secret(text, start, position)):
            pieces += (text[kept : secret[0]], REDACTED)
            kept = position = secret[1]
    return _CREDENTIALS.sub(REDACTED, "".join([*pieces, text[kept:]]))


def _places(text: str) -> list[int]:
    """Return where the words occur, in order."""
    lower = text.lower()
    if len(lower) != len(text):  # the small letter of U+0130 has two characters
        lower = text.translate(_ASCII_LOWER)
    places: list[int] = []
    for word in WORDS:
        place = lower.find(word)
        while place >= 0:
            places.append(place)
            place = lower.find(word, place + len(word))
    return sorted(places)


def _name_at(text: str, place: int) -> tuple[int, int]:
    """Return where the name around a place begins and ends."""
    start = place
    while start and place - start < _MAX_NAME and (text[start - 1].isalnum() or text[start - 1] in "_-"):
        start -= 1
    run = _RUN.match(text, place)
    end = run.end() if run else place + 1
    if text[start:end].lower() == "key" and (spaced := _SPACED_KEY.search(text, max(0, start - 12), start)):
        start = spaced.start()
    return start, end


def _secret(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Return where the secret under the name at these positions begins and ends, or None if there is none."""
    name, separator = text[start:end][-_MAX_NAME:], _SEPARATOR.match(text, end)
    if separator is None or not _separates(text, start, name, separator):
        return None
    kind, begin = _kind(name), separator.end()
    if kind == "cookie":
        pairs = _COOKIES.match(text, begin)
        return pairs.span("pairs") if pairs else None
    quoted = None if separator["element"] else _QUOTED.match(text, begin) or _ESCAPED.match(text, begin)
    if quoted:
        begin = quoted.start("value")
    # A reference is told by its beginning. To search for its end first takes the square of a text's length.
    elif _CODE.match(text, begin) or _NEXT.match(text, begin) or _is_name(text, separator):
        return None
    if _PLACEHOLDER.match(text, begin):
        return None
    end = _end_of_quoted(text, start, quoted) if quoted else _end_of_bare(text, separator, kind)
    if kind == "authorization":
        return _authorization(text, begin, end, is_quoted=quoted is not None)
    is_code = " =" in separator[0] and separator[0].endswith(" ") and not name.isupper()
    if _is_open(name, kind, text[begin:end], is_quoted=quoted is not None, is_code=is_code):
        return None
    if separator["told"] and not _LIKE_A_PASSWORD.match(text, begin):
        return None  # the password is required
    return begin, end


def _separates(text: str, start: int, name: str, separator: re.Match[str]) -> bool:
    """Return whether what follows a name gives its value."""
    before, after = text[max(0, start - 14) : start], text[separator.end() : separator.end() + 1]
    if separator["element"]:
        return before.endswith("<")
    if separator["argument"]:
        return name.isupper() and before[:-1].endswith("(")
    if separator["space"]:
        if name.startswith("--") or before.endswith(_COMMANDS):
            return True
        # PASSWORD '…', password hunter2, but not: unexpected token '…', password reset
        is_password = name.lower().endswith(("password", "passwd"))
        return is_password and (after in _QUOTES or bool(_LIKE_A_PASSWORD.match(text, separator.end())))
    return not (separator[0] == ":" and before.endswith(":"))  # arn:aws:secretsmanager:…:secret:name


def _is_name(text: str, separator: re.Match[str]) -> bool:
    """Return whether another name follows, whose value is the secret: ``auth: token: …``."""
    begin = separator.end()
    if separator[0].lstrip("\"'").startswith(":") and _INNER_NAME.match(text, begin):
        return True
    inner = _INNER_SECRET.match(text, begin)
    return inner is not None and bool(_kind(inner[0][-_MAX_NAME:]))


def _end_of_quoted(text: str, name: int, quoted: re.Match[str]) -> int:
    """Return where the value in quotes ends."""
    begin = quoted.start("value")
    if _CLOSER.match(text, begin) and _is_within(text, name, quoted["quote"]):
        return begin  # the quote closes a text that began before the name: input('Password: ')
    if quoted["close"]:
        return quoted.end("value")
    end = text.find("\n", begin)  # the text was cut in the value
    return len(text) if end < 0 else end


def _end_of_bare(text: str, separator: re.Match[str], kind: str) -> int:
    """Return where the value without quotes ends."""
    begin = separator.end()
    if separator["element"]:
        found = _ELEMENT.match(text, begin)
    else:
        found = _BARE.match(text, begin, begin + _MAX_KEY if kind == "key" else len(text))
    if not found:
        return begin
    return begin + len(found[0] if re.search(r"[(\[{]", found[0]) else found[0].rstrip(")]}:"))


def _is_within(text: str, position: int, quote: str) -> bool:
    """Return whether a quote is open at a position of a line."""
    line = text[max(text.rfind("\n", max(0, position - 200), position) + 1, position - 200) : position]
    return line.count(quote) % 2 == 1


def _authorization(text: str, begin: int, end: int, *, is_quoted: bool) -> tuple[int, int] | None:
    """Return where a header's credentials with their scheme begin and end, or None for a reference."""
    scheme = _SCHEME.match(text, begin)
    start = scheme.end() if scheme else begin
    if _PLACEHOLDER.match(text, start) or (not scheme and text[begin:end].lower() in OPEN_VALUES):
        return None
    if scheme and not is_quoted:
        rest = _LINE.match(text, start) if scheme["long"] else _BARE.match(text, start)
        end = rest.end() if rest else end
    return (begin, end) if end > start else None


def _is_open(name: str, kind: str, value: str, *, is_quoted: bool, is_code: bool) -> bool:
    """Return whether a value tells nothing: a word such as None, a count, or the name of another variable."""
    if not value or (kind == "key" and not _RANDOM.fullmatch(value)):
        return True
    if kind in ("token", "auth") and _NUMBER.fullmatch(value):
        return True
    word = value.rstrip(".,:!?")
    if word.lower() in OPEN_VALUES or not word.strip("*."):
        return True
    if is_quoted:
        return False
    return (kind == "auth" and word.isalpha() and word.islower()) or (
        _IDENTIFIER.fullmatch(word) is not None and _is_variable(name, word, is_code=is_code)
    )


def _is_variable(name: str, word: str, *, is_code: bool) -> bool:
    """Return whether an unquoted word is the name of a variable, which code assigns."""
    first, *others = re.split(r"\.|\?\.|::|->", word.lstrip("&*@"))
    if others:
        return is_code or first.lower() in _ROOTS or bool(_kind(first) or _kind(others[-1]))
    same = first.lower().replace("_", "") == name.lower().replace("_", "").replace("-", "")
    if same:
        return is_code or not first.lower().startswith("pass")
    parts = _PARTS.findall(first)
    return not name.isupper() and len(parts) > 1 and parts[-1].lower().endswith(SECRET_ENDINGS)


@lru_cache(1024)
def _kind(name: str) -> str:
    """Return what a name says of its value: a ``secret``, a ``token``, a ``key``, a header's name, or nothing."""
    parts = [part.lower() for part in _PARTS.findall(name)]
    if parts and parts[-1] in ("authorization", "cookie"):
        return parts[-1]
    for index, part in enumerate(parts):
        before, after = parts[index - 1] if index else "", parts[index + 1 :]
        if not _is_secret_part(
            part, before, is_last=not after, is_longer=bool(before) or name.startswith("--")
        ) or OPEN_AFTER & set(after):
            continue
        if part.endswith("token") and before in OPEN_TOKENS:
            continue
        return next((weak for weak in ("token", "auth") if part.endswith(weak)), "secret")
    if parts and parts[-1] == "key" and not OPEN_KEYS & set(parts):
        return "key"
    return ""


def _is_secret_part(part: str, before: str, *, is_last: bool, is_longer: bool) -> bool:
    return (
        part.endswith(SECRET_ENDINGS)
        or part in SECRET_PARTS
        or (part == "key" and before in KEYS)
        or (part in SECRET_LAST_PARTS and is_last and is_longer)
    )
