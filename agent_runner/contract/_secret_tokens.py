"""Redact secrets that show by their own form: vendors' tokens, private keys, URLs with a password, addresses. Pure.

Rows have the ids of gitleaks' rules (v8.30) where it has one. Lengths are shorter than the vendors', so that a token
that was cut is still recognised. A row applies only to texts that contain its mark.
"""

from __future__ import annotations

import re
from functools import cache

REDACTED = "[redacted]"

_AUTHRESS = r"[A-Za-z0-9]{5,30}\.[A-Za-z0-9]{4,6}\.acc[_-][A-Za-z0-9-]{10,32}\.[\w+/=-]{30,}"

# Rule, prefix, and the pattern that follows it. A letter, a digit or an underscore before the prefix rules it out.
TOKENS: tuple[tuple[str, str, str], ...] = (
    ("1password-secret-key", "A3-", r"[A-Z0-9]{6}-[A-Z0-9-]{20,}"),
    ("1password-service-account-token", "ops_eyJ", r"[A-Za-z0-9+/]{32,}={0,3}"),
    ("adobe-client-secret", "p8e-", r"[A-Za-z0-9]{32}"),
    ("age-secret-key", "AGE-SECRET-KEY-1", r"[A-Z0-9]{32,}"),
    ("alibaba-access-key-id", "LTAI", r"[A-Za-z0-9]{16,}"),
    ("anthropic-admin-api-key", "sk-ant-admin", r"[\w-]{8,}"),
    ("anthropic-api-key", "sk-ant-", r"[\w-]{4,}"),
    ("artifactory-api-key", "AKCp", r"[A-Za-z0-9]{40,}"),
    ("artifactory-reference-token", "cmVmd", r"[A-Za-z0-9]{40,}"),
    ("atlassian-api-token", "ATATT3", r"[\w=-]{40,}"),
    ("atlassian-cloud-token", "ATCTT3", r"[\w=-]{40,}"),
    ("authress-service-client-access-key", "authress_", _AUTHRESS),
    ("authress-service-client-access-key", "ext_", _AUTHRESS),
    ("authress-service-client-access-key", "sc_", _AUTHRESS),
    ("authress-service-client-access-key", "scauth_", _AUTHRESS),
    ("aws-access-token", "A3T", r"[A-Z0-9][A-Z2-7]{16}\b"),
    ("aws-access-token", "ABIA", r"[A-Z0-9]{16}\b"),
    ("aws-access-token", "ACCA", r"[A-Z0-9]{16}\b"),
    ("aws-access-token", "AKIA", r"[A-Z0-9]{16}\b"),
    ("aws-access-token", "ASIA", r"[A-Z0-9]{16}\b"),
    ("aws-amazon-bedrock-api-key-long-lived", "ABSK", r"[A-Za-z0-9+/]{60,}={0,2}"),
    ("aws-amazon-bedrock-api-key-short-lived", "bedrock-api-key-", r"[A-Za-z0-9+/]{16,}={0,2}"),
    ("bitbucket-app-password", "ATBB", r"[A-Za-z0-9_=-]{24,}"),
    ("clickhouse-cloud-api-secret-key", "4b1d", r"[A-Za-z0-9]{38}\b"),
    ("clojars-api-token", "CLOJARS_", r"[A-Za-z0-9]{40,}"),
    ("cloudflare-origin-ca-key", "v1.0-", r"[a-f0-9]{24}-[a-f0-9]{40,}"),
    ("contentful-personal-access-token", "CFPAT-", r"[\w-]{32,}"),
    ("databricks-api-token", "dapi", r"[a-f0-9]{32}(?:-\d)?\b"),
    ("defined-networking-api-token", "dnkey-", r"[\w=-]{26,}"),
    ("digitalocean-access-token", "doo_v1_", r"[a-f0-9]{32,}"),
    ("digitalocean-pat", "dop_v1_", r"[a-f0-9]{32,}"),
    ("digitalocean-refresh-token", "dor_v1_", r"[a-f0-9]{32,}"),
    ("docker-hub-pat", "dckr_pat_", r"[\w-]{20,}"),
    ("doppler-api-token", "dp.pt.", r"[A-Za-z0-9]{32,}"),
    ("dropbox-short-lived-api-token", "sl.", r"[\w=-]{60,}"),
    ("duffel-api-token", "duffel_", r"(?:test|live)_[\w=-]{32,}"),
    ("dynatrace-api-token", "dt0c01.", r"[A-Za-z0-9]{24}\.[A-Za-z0-9]{40,}"),
    ("e2b-api-key", "e2b_", r"[A-Za-z0-9]{8,}"),
    ("easypost-api-token", "EZAK", r"[A-Za-z0-9]{54}\b"),
    ("easypost-test-api-token", "EZTK", r"[A-Za-z0-9]{54}\b"),
    ("facebook-page-access-token", "EAAC", r"[A-Za-z0-9]{60,}"),
    ("facebook-page-access-token", "EAAM", r"[A-Za-z0-9]{60,}"),
    ("figma-token", "figd_", r"[\w-]{32,}"),
    ("flutterwave-encryption-key", "FLWSECK_TEST-", r"[a-h0-9]{12}\b"),
    ("flutterwave-secret-key", "FLWSECK-", r"[a-h0-9]{32}-X"),
    ("flutterwave-secret-key", "FLWSECK_TEST-", r"[a-h0-9]{32}-X"),
    ("flyio-access-token", "fm1a_", r"[A-Za-z0-9+/]{60,}={0,3}"),
    ("flyio-access-token", "fm1r_", r"[A-Za-z0-9+/]{60,}={0,3}"),
    ("flyio-access-token", "fm2_", r"[A-Za-z0-9+/]{60,}={0,3}"),
    ("flyio-access-token", "fo1_", r"[\w-]{32,}"),
    ("frameio-api-token", "fio-u-", r"[\w=-]{40,}"),
    ("gcp-api-key", "AIza", r"[\w-]{30,}"),
    ("gcp-oauth-access-token", "ya29.", r"[\w-]{20,}"),
    ("gcp-oauth-client-secret", "GOCSPX-", r"[\w-]{20,}"),
    ("github-app-token", "ghs_", r"[A-Za-z0-9]{16,}"),
    ("github-app-token", "ghu_", r"[A-Za-z0-9]{16,}"),
    ("github-fine-grained-pat", "github_pat_", r"[A-Za-z0-9_]{16,}"),
    ("github-oauth", "gho_", r"[A-Za-z0-9]{16,}"),
    ("github-pat", "ghp_", r"[A-Za-z0-9]{16,}"),
    ("github-refresh-token", "ghr_", r"[A-Za-z0-9]{16,}"),
    ("gitlab-cicd-job-token", "glcbt-", r"[A-Za-z0-9]{1,5}_[\w-]{16,}"),
    ("gitlab-deploy-token", "gldt-", r"[\w-]{16,}"),
    ("gitlab-feature-flag-client-token", "glffct-", r"[\w-]{16,}"),
    ("gitlab-feed-token", "glft-", r"[\w-]{16,}"),
    ("gitlab-incoming-mail-token", "glimt-", r"[\w-]{16,}"),
    ("gitlab-kubernetes-agent-token", "glagent-", r"[\w-]{16,}"),
    ("gitlab-oauth-app-secret", "gloas-", r"[\w-]{16,}"),
    ("gitlab-pat", "glpat-", r"[\w-]{16,}(?:\.[0-9a-z]{2}[0-9a-z]{7}\b)?"),
    ("gitlab-ptt", "glptt-", r"[0-9a-f]{16,}"),
    ("gitlab-rrt", "GR1348941", r"[\w-]{16,}"),
    ("gitlab-runner-authentication-token", "glrt-", r"[\w-]{16,}(?:\.[0-9a-z]{2}[0-9a-z]{7}\b)?"),
    ("gitlab-scim-token", "glsoat-", r"[\w-]{16,}"),
    ("gitlab-session-cookie", "_gitlab_session=", r"[0-9a-z]{16,}"),
    ("grafana-api-key", "eyJrIjoi", r"[A-Za-z0-9]{40,}={0,3}"),
    ("grafana-cloud-api-token", "glc_", r"[A-Za-z0-9+/]{32,}={0,3}"),
    ("grafana-service-account-token", "glsa_", r"[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}"),
    ("groq-api-key", "gsk_", r"[A-Za-z0-9]{32,}"),
    ("harness-api-key", "pat.", r"[\w-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}"),
    ("harness-api-key", "sat.", r"[\w-]{22}\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{20}"),
    ("heroku-api-key-v2", "HRKU-AA", r"[\w-]{40,}"),
    ("huggingface-access-token", "hf_", r"[A-Za-z0-9]{16,}"),
    ("huggingface-organization-api-token", "api_org_", r"[A-Za-z0-9]{16,}"),
    ("infracost-api-token", "ico-", r"[A-Za-z0-9]{32}"),
    ("intra42-client-secret", "s-s4t2af-", r"[a-f0-9]{32,}"),
    ("intra42-client-secret", "s-s4t2ud-", r"[a-f0-9]{32,}"),
    ("jwt-base64", "ZXlK", r"[\w/+-]{40,}={0,2}"),
    ("langfuse-key", "pk-", r"(?:lf|live|test)[\w-]{8,}"),
    ("langfuse-key", "rk-", r"(?:lf|live|test)[\w-]{8,}"),
    ("langsmith-api-key", "lsv2_", r"(?:pt|sk)_[a-f0-9]{16,}[\w-]*"),
    ("linear-api-key", "lin_api_", r"[A-Za-z0-9]{32,}"),
    ("mailgun-private-api-token", "key-", r"[a-f0-9]{32}\b"),
    ("netlify-access-token", "nfp_", r"[A-Za-z0-9]{32,}"),
    ("new-relic-browser-api-token", "NRJS-", r"[a-f0-9]{19}\b"),
    ("new-relic-insert-key", "NRII-", r"[A-Za-z0-9-]{32}"),
    ("new-relic-user-api-key", "NRAK-", r"[A-Z0-9]{20,}"),
    ("notion-api-token", "ntn_", r"[A-Za-z0-9]{32,}"),
    ("npm-access-token", "npm_", r"[A-Za-z0-9]{30,}"),
    ("nvidia-api-key", "nvapi-", r"[\w-]{32,}"),
    ("octopus-deploy-api-key", "API-", r"[A-Z0-9]{26}\b"),
    # Words in small letters with hyphens are class names, such as sk-fading-circle.
    ("openai-api-key", "sk-", r"(?=[a-z-]{0,24}(?:[A-Z0-9_]|[a-z]{16}))[\w-]{8,}"),
    ("openshift-user-token", "sha256~", r"[\w-]{32,}"),
    ("perplexity-api-key", "pplx-", r"[A-Za-z0-9]{32,}"),
    ("pinecone-api-key", "pcsk_", r"\w{32,}"),
    ("planetscale-api-token", "pscale_tkn_", r"[\w.-]{24,}={0,2}"),
    ("planetscale-oauth-token", "pscale_oauth_", r"[\w.-]{24,}={0,2}"),
    ("planetscale-password", "pscale_pw_", r"[\w.-]{24,}={0,2}"),
    ("posthog-personal-api-key", "phx_", r"[A-Za-z0-9]{32,}"),
    ("postman-api-token", "PMAK-", r"[A-Fa-f0-9]{24}-[A-Fa-f0-9]{24,}"),
    ("prefect-api-token", "pnu_", r"[A-Za-z0-9]{32,}"),
    ("pulumi-api-token", "pul-", r"[a-f0-9]{40}"),
    ("pypi-upload-token", "pypi-AgE", r"[\w-]{32,}"),
    ("readme-api-token", "rdme_", r"[a-z0-9]{40,}"),
    ("replicate-api-token", "r8_", r"[A-Za-z0-9]{32,}"),
    ("rubygems-api-token", "rubygems_", r"[a-f0-9]{32,}"),
    ("sandspan-service-token", "sst_", r"[\w-]{16,}"),
    ("scalingo-api-token", "tk-us-", r"[\w-]{32,}"),
    ("sendgrid-api-token", "SG.", r"[\w=-]{16,}\.[\w=-]{16,}"),
    ("sendinblue-api-token", "xkeysib-", r"[a-f0-9]{40,}-[A-Za-z0-9]{16}"),
    ("sentry-org-token", "sntrys_", r"[A-Za-z0-9+/]{20,}={0,2}(?:_[A-Za-z0-9+/]{43})?"),
    ("sentry-user-token", "sntryu_", r"[a-f0-9]{32,}"),
    ("settlemint-application-access-token", "sm_aat_", r"[A-Za-z0-9]{16}"),
    ("settlemint-personal-access-token", "sm_pat_", r"[A-Za-z0-9]{16}"),
    ("settlemint-service-access-token", "sm_sat_", r"[A-Za-z0-9]{16}"),
    ("shippo-api-token", "shippo_", r"(?:live|test)_[a-fA-F0-9]{32,}"),
    ("shopify-access-token", "shpat_", r"[a-fA-F0-9]{24,}"),
    ("shopify-custom-access-token", "shpca_", r"[a-fA-F0-9]{24,}"),
    ("shopify-private-app-access-token", "shppa_", r"[a-fA-F0-9]{24,}"),
    ("shopify-shared-secret", "shpss_", r"[a-fA-F0-9]{24,}"),
    ("slack-app-token", "xapp-", r"[A-Za-z0-9-]{16,}"),
    ("slack-bot-token", "xoxb-", r"[A-Za-z0-9-]{8,}"),
    ("slack-config-refresh-token", "xoxe-", r"[A-Za-z0-9-]{8,}"),
    ("slack-legacy-token", "xoxo-", r"[A-Za-z0-9-]{8,}"),
    ("slack-legacy-token", "xoxs-", r"[A-Za-z0-9-]{8,}"),
    ("slack-legacy-workspace-token", "xoxa-", r"[A-Za-z0-9-]{8,}"),
    ("slack-legacy-workspace-token", "xoxr-", r"[A-Za-z0-9-]{8,}"),
    ("slack-user-token", "xoxp-", r"[A-Za-z0-9-]{8,}"),
    ("slack-webhook-url", "hooks.slack.com/", r"(?:services|workflows|triggers)/[A-Za-z0-9+/]{20,}"),
    ("sonar-api-token", "sqa_", r"[a-f0-9]{40}"),
    ("sonar-api-token", "sqp_", r"[a-f0-9]{40}"),
    ("sonar-api-token", "squ_", r"[a-f0-9]{40}"),
    ("sourcegraph-access-token", "sgp_", r"(?:[a-fA-F0-9]{16}_|local_)?[a-fA-F0-9]{32,}"),
    ("square-access-token", "EAAA", r"[\w-]{40,}"),
    ("square-access-token", "sq0atp-", r"[\w-]{20,}"),
    ("square-oauth-secret", "sq0csp-", r"[\w-]{20,}"),
    ("stripe-access-token", "rk_", r"(?:live|test|prod)_[A-Za-z0-9]{10,}"),
    ("stripe-access-token", "sk_", r"(?:live|test|prod)_[A-Za-z0-9]{10,}"),
    ("stripe-webhook-secret", "whsec_", r"[A-Za-z0-9+/]{20,}={0,2}"),
    ("supabase-access-token", "sbp_", r"[a-f0-9]{32,}"),
    ("tailscale-key", "tskey-", r"[a-z]+-[\w-]{16,}"),
    ("tavily-api-key", "tvly-", r"[\w-]{20,}"),
    ("twilio-api-key", "SK", r"[0-9a-fA-F]{32}\b"),
    ("typeform-api-token", "tfp_", r"[\w.=-]{40,}"),
    ("vault-batch-token", "hvb.", r"[\w-]{60,}"),
    ("vault-recovery-token", "hvr.", r"[\w-]{60,}"),
    ("vault-service-token", "hvs.", r"[\w-]{20,}"),
    ("xai-api-key", "xai-", r"[A-Za-z0-9]{40,}"),
    ("yandex-api-key", "AQVN", r"[\w-]{35,}"),
)

_VALUE = r"(?![\[$<{*])[^\s\"']{1,512}"
"""A value that is no placeholder."""

_KEEP = rf"\1{REDACTED}"
"""The replacement that keeps a pattern's first group."""

# Rule, mark, pattern, replacement.
FORMS: tuple[tuple[str, str, str, str], ...] = (
    ("azure-ad-client-secret", "~", r"(?<![\w~.-])[\w~.-]{3}\dQ~[\w~.-]{31,34}", REDACTED),
    ("hashicorp-tf-api-token", "atlasv1.", r"\b[A-Za-z0-9]{14}\.atlasv1\.[\w=-]{40,}", REDACTED),
    # It ends where the next one begins: a search from each place of a run takes the square of its length.
    (
        "jwt",
        "eyJ",
        r"eyJ(?<![A-Za-z0-9_]eyJ)(?:\w|-(?!eyJ)){8,}+\.[\w-]{8,}+\.[\w-]*(?:\.[\w-]*){0,2}",
        REDACTED,
    ),
    ("mailchimp-api-key", "-us", r"(?<!\w)[0-9a-f]{32}-us\d{1,2}\b", REDACTED),
    ("sidekiq-secret", "CONTRIBSYS__COM", r"(CONTRIBSYS__COM[=:][ \t\"']{0,3})[a-f0-9]{8}:[a-f0-9]{8}", _KEEP),
    ("telegram-bot-api-token", ":AA", r"(?<!\d)\d{5,16}:AA[\w-]{32,}", REDACTED),
    ("signed-url", "sig=", r"([?&;]sig=)[\w%+/=-]{10,}", _KEEP),
    ("signed-url", "ignature=", r"([?&;](?:X-[A-Za-z]{3,8}-)?Signature=)[\w%+/=~-]{10,}", _KEEP),
    ("discord-webhook-url", "://", r"(/api/webhooks/)\d{16,20}/[\w-]{40,}", _KEEP),
    (
        "microsoft-teams-webhook",
        "://",
        r"(\.webhook\.office\.com/)[\w/@-]{20,}",
        _KEEP,
    ),
    # A password that is a placeholder stays, and a number before a slash is a port.
    (
        "url-with-password",
        "://",
        r"://[^\s/?#\"'<>:@]*:(?!\d{1,5}/)(?![$<{*\[]|%[s(])"
        r"(?:[^\s/\"'<>]{0,512}@|[^\s\"'<>]{0,512}@)(?=[\w\[$]|\{)",
        rf"://{REDACTED}@",
    ),
    ("url-with-token", "://", r"://[\w.~%-]{16,512}@", rf"://{REDACTED}@"),
    (
        "netrc-password",
        "login",
        rf"(\bmachine\s{{1,20}}\S{{1,200}}\s{{1,20}}login\s{{1,20}}\S{{1,200}}\s{{1,20}}password\s{{1,20}}){_VALUE}",
        _KEEP,
    ),
    (
        "curl-auth-user",
        "curl",
        rf"((?<=\s)(?:-u|-U|--user|--proxy-user)[ =]?[\"']?[^\s:\"'$]{{1,200}}:)(?!\d{{1,6}}(?!\S)){_VALUE}",
        _KEEP,
    ),
    ("sshpass-password", "sshpass", rf"(\bsshpass\s+-p ?[\"']?){_VALUE}", _KEEP),
    (
        "mysql-password",
        "mysql",
        rf"(\bmysql\w*(?:\s-(?!p)-?\w\S{{0,60}}(?:\s[^\s-]\S{{0,60}})?){{0,6}}?\s-p)(?![\s=-]){_VALUE}",
        _KEEP,
    ),
    ("redis-password", "redis-cli", rf"(\bredis-cli\b(?:(?!\s-a)[^\n|;]){{0,200}}\s-a ?[\"']?){_VALUE}", _KEEP),
    (
        "docker-login-password",
        "docker login",
        rf"(\bdocker login\b(?:(?!\s-p)[^\n|;]){{0,200}}\s-p ?[\"']?){_VALUE}",
        _KEEP,
    ),
    ("openssl-password", "pass:", rf"(\s-pass(?:in|out)?[ =]pass:){_VALUE}", _KEEP),
    ("keytool-password", "pass ", rf"(\s-(?:store|key|src|dest)(?:store)?pass ){_VALUE}", _KEEP),
    ("sql-password", "IDENTIFIED", r"(\bIDENTIFIED (?:WITH \w+ )?(?:BY|AS) ['\"])[^'\"\n]{1,512}", _KEEP),
    # git@host is the address of a repository; name@1.2 and name@2x.png are versions.
    (
        "email-address",
        "@",
        r"(?<![\w.%+-])(?!git@)[A-Za-z0-9._%+-]++@(?!v?\d+\.\d|\d+x\.)[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2}[A-Za-z0-9-]*+",
        REDACTED,
    ),
)

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
    r".*?(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)


def _rows() -> list[tuple[str, str, str]]:
    """Return mark, pattern and replacement of all rows."""
    # A pattern that begins with plain letters is found ten times as fast as one that begins with a condition.
    tokens = [(mark, rf"{re.escape(mark)}(?<!\w{re.escape(mark)}){rest}", REDACTED) for _, mark, rest in TOKENS]
    *forms, email = [(mark, pattern, replacement) for _, mark, pattern, replacement in FORMS]
    return [*forms, *tokens, email]


def _heads() -> re.Pattern[str]:
    """Return a pattern that finds prefixes with a joint (one of ``_-.``) after two characters or more.

    It looks for joints and compares the word before: to compare a text with each prefix takes thrice as long.
    """
    heads: dict[int, list[str]] = {}
    for _, prefix, _ in TOKENS:
        if head := _HEAD_OF_PREFIX.match(prefix):
            heads.setdefault(len(head[1]), []).append(head[1])
    words = (rf"(?<=(?<!\w)(?:{'|'.join(sorted(set(same)))})[_.-])" for same in heads.values())
    return re.compile(rf"[_.-](?=[\w/+=.-]{{6}})(?:{'|'.join(words)})", re.ASCII)


def _other_marks() -> tuple[re.Pattern[str], list[str]]:
    """Return a pattern that finds the marks of the other rows that begin with a capital, and those that do not."""
    prefixes = {prefix for _, prefix, _ in TOKENS if not _HEAD_OF_PREFIX.match(prefix)}
    marks = prefixes | {mark for _, mark, *_ in FORMS if "pass" not in mark}  # which is a word of `redact_named`
    shortest = [mark for mark in marks if not any(other in mark for other in marks - {mark})]
    capitals = [mark for mark in shortest if mark[0].isupper()]
    return re.compile("|".join(sorted(capitals))), sorted(set(shortest) - set(capitals))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Return the compiled pattern. To compile all of them takes a quarter of the runner's start."""
    return re.compile(pattern, re.ASCII)


_HEAD_OF_PREFIX = re.compile(r"(?:s-)?([A-Za-z0-9]{2,})[_.-]")
_ROWS = _rows()
_HEAD, (_CAPITALS, _MARKS) = _heads(), _other_marks()
_BEGINNINGS = frozenset(mark[:2] for _, mark, _ in TOKENS)


def redact_private_keys(text: str) -> str:
    """Return the text with ``[redacted]`` in place of private keys, from their first line to their last or the end."""
    return _PRIVATE_KEY.sub(REDACTED, text) if "-----BEGIN" in text else text


def may_hold_a_token(text: str) -> bool:
    """Return whether a row can match: mostly none can, and this test takes a twentieth of the time of all rows."""
    for mark in _MARKS:  # any() with a generator takes twice as long
        if mark in text:
            return True
    return bool(_HEAD.search(text) or _CAPITALS.search(text))


def redact_tokens(text: str) -> str:
    """Return the text with ``[redacted]`` in place of what matches a row."""
    for mark, pattern, replacement in _ROWS:
        if mark in text:
            text = _compiled(pattern).sub(replacement, text)
    return text


def is_harmless_word(text: str) -> bool:
    """Return whether the text is one word, such as an id, that begins like no token."""
    return text[:2] not in _BEGINNINGS and text.isascii() and (text.isalnum() or text.isidentifier())
