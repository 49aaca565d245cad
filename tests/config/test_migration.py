"""Files of older forms, written in the present one: what they mean then, and what stays of their looks."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keswick.config import Config, ConfigError, document, load
from keswick.config.migration import Migrated, migrate
from keswick.names import is_name
from keswick.policy import Policy

VECTORS = Path(__file__).parents[1] / "vectors" / "config"
OLD = [path for path in sorted(VECTORS.glob("20*-*")) if path.suffix != ".json" and not path.name.startswith("2025")]
OLD += sorted(VECTORS.glob("transitional-*.yaml"))
APIS = dict.fromkeys(("/v1/ready", "/v1/key/create/", "/v1/key/list/", "/v1/identity/assign/"), False)
PATHS = [
    *("/", "/version", "/v1/ready", "/v1/key/list/", "/v1/key/list/a", "/v1/key/create/a", "/v1/key/create/ab"),
    *("/v1/identity/assign/a/b", "/v1/policy/list/a", "/v1/log/error", "/v1/log/error/trace"),
]


def today(folder: Path, migrated: Migrated) -> Config:
    """What is read in the new file, where somebody has written what was left to flags."""
    text = re.sub(r'"" # or go on with \'--(\w+)\'', r"\1", migrated.text)
    (folder / "new.yaml").write_text(text)
    return load(folder / "new.yaml", apis=APIS)


def expected(old: Config, *, dialect: str) -> Config:
    """What the new file is to mean, but for policies."""
    assert old.tls is not None
    return replace(
        old,
        form="2025",
        dialect=dialect,
        admin=old.admin or "root",
        tls=replace(
            old.tls, key=old.tls.key or "key", cert=old.tls.cert or "cert", auth_implied=old.dialect == dialect
        ),
        log=replace(old.log, audit_unit="ns" if dialect != "2025" else "ms"),
        policies={},
        warnings=(),
    )


def assert_same_meaning(folder: Path, path: Path) -> None:
    old = load(path, apis=APIS)
    kept = today(folder, migrate(path, apis=APIS, keep_dialect=True))
    assert replace(kept, policies={}, warnings=()) == expected(old, dialect=old.dialect)
    assert kept.policies == old.policies

    new = today(folder, migrate(path, apis=APIS))
    assert replace(new, policies={}, warnings=()) == expected(old, dialect="2025")
    assert len(new.policies) == len(old.policies)
    for (name, policy), (old_name, old_policy) in zip(new.policies.items(), old.policies.items(), strict=True):
        assert name == old_name or not is_name(old_name)
        assert policy.identities == tuple(filter(is_name, old_policy.identities))
        permits = Policy(name, policy.allow, policy.deny).permits
        permitted = Policy(name, old_policy.allow, old_policy.deny, globs_only=True).permits
        assert list(map(permits, PATHS)) == list(map(permitted, PATHS))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in VECTORS.glob("*.json"):
        for name, value in json.loads(path.read_text()).get("environment", {}).items():
            monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("path", OLD, ids=lambda path: path.name)
def test_the_new_file_means_the_same(tmp_path: Path, path: Path) -> None:
    assert_same_meaning(tmp_path, path)


@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader])
def test_comments_quotes_and_references_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: type[yaml.SafeLoader]
) -> None:
    monkeypatch.setattr(document, "LOADER", loader)
    monkeypatch.setenv("KES_ROOT", "secret of this machine")
    (tmp_path / "old.yaml").write_text("""\
# Our server

---
# where it listens
address: 1.2.3.4:5   # behind the address
# behind whom all rights are
root: ${KES_ROOT} # from outside

tls: # the certificate
  # the key
  key: "k" # 'k' # really
  cert: c

cache:
  expiry: {any: 0, unused: 20s} # both

policy: # policies
  app:
    paths: # list
    # first
    - /v1/key/create/* # create
    - "/v1/*"
    # last of paths
    identities: [a,
      # b is new
      b] # flow
keys:
  gcp:
    secretmanager:
      project_id: p
      credentials:
        client_email: a
        client_id: "007"
        private_key_id: c
        private_key: |
          # no comment
          x

          y
        # nothing follows
  # one that does not count
  fs:
    path: ""
# the end
# of it
""")
    migrated = migrate(tmp_path / "old.yaml", apis=APIS)

    assert migrated.left == []
    assert migrated.changed[-1] == "comments that found no place in the new file stand in lines 40 and 41"
    assert (
        migrated.text
        == """\
# Our server


# where it listens
address: 1.2.3.4:5 # behind the address

# behind whom all rights are
admin:
  identity: ${KES_ROOT} # from outside

tls: # the certificate
  # the key
  key: "k" # 'k' # really
  cert: c
  auth: on # the default is off since October 2023

cache:
  expiry:
    any: 0s # both
    unused: 20s

policy: # policies
  app:
    allow: # list
      # first
      - /v1/key/create/* # create
      - "\\\\/v1/*" # because of the backslash, '*' stops at the next '/', as until 2023
    # last of paths
    identities:
      - a
      # b is new
      - b # flow

keystore:
  gcp:
    secretmanager:
      project_id: p
      credentials:
        client_email: a
        client_id: "007"
        private_key_id: c
        private_key: |
          # no comment
          x

          y

# Policies may be written through the API.
runtime_policies: on

log:
  audit: off

# the end
# of it
"""
    )
    assert_same_meaning(tmp_path, tmp_path / "old.yaml")


def test_comments_of_toml_stay(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text("""\
# Our server
root = "disabled" # nobody

# the certificate
[tls]
key = 'k' # the key
# and the other
cert = "c # c"

[policy."my-app"] # ours
paths = ["/v1/ready"]
[keystore.fs] # keys
path = "/keys"
# the end
""")
    assert (
        migrate(tmp_path / "old.toml", apis=APIS, keep_dialect=True).text
        == """\
# Answers in the words of v0.13, and the defaults of that time.
compatibility: 2021

# Our server
admin:
  identity: disabled # nobody

# the certificate
tls:
  key: k # the key
  # and the other
  cert: "c # c"

policy:
  my-app: # ours
    allow:
      - /v1/ready

keystore:
  fs: # keys
    path: /keys

# the end
"""
    )


LEAST = "root: disabled\ntls: {key: k, cert: c}\nkeys: {fs: {path: /keys}}\n"


def sentences(folder: Path, text: str, *, keep_dialect: bool = False, release: str | None = None) -> str:
    (folder / "old.yaml").write_text(text)
    migrated = migrate(folder / "old.yaml", apis=APIS, keep_dialect=keep_dialect, release=release)
    return "\n".join(
        f"{kind}: {sentence}" for kind in ("changed", "kept", "left") for sentence in getattr(migrated, kind)
    )


def test_what_is_told(tmp_path: Path) -> None:
    assert (
        sentences(tmp_path, LEAST)
        == """\
changed: 'address' is not set: the server listens on every address of the machine; v0.13 listened on 127.0.0.1:7373 only
changed: 'cache.expiry.any' is not set: keys leave the cache after 5m0s; in v0.13 they stayed until a restart
changed: 'cache.expiry.unused' is not set: keys leave the cache after 30s; in v0.13 they stayed until a restart
changed: counters of requests have the label 'code'; add them up, as in 'sum(kes_http_request_success)'
changed: the API answers as in 2025 and no longer as in v0.13: statuses, messages, lists; with '--keep-dialect' it \
would go on so
changed: times in the audit stream at '/v1/log/audit' are milliseconds, not nanoseconds
changed: to delete a key that is not there is an error, 404; it was a success
kept: client certificates are verified: 'tls.auth: on' is written, because the default is off now
kept: policies and assignments may be written through the API: 'runtime_policies: on' is written, because the default \
is off now; remove it if nobody does that
kept: requests are not recorded: 'log.audit: off' is written, because the newest original records them where nothing \
is said"""
    )
    told = sentences(tmp_path, LEAST, keep_dialect=True).splitlines()
    assert [line.split()[1] for line in told] == [
        "'address'",
        "'cache.expiry.any'",
        "'cache.expiry.unused'",
        "counters",
    ]


OF_2023 = """\
# Our server
admin: {identity: someone}
tls: {key: k, cert: c}
policy:
  app: {allow: [/v1/key/*, '/v1/key/create/*'], deny: [/v1/key/*/secret-*], identities: [x]} # of the app
keystore: {fs: {path: /keys}}
"""


@pytest.mark.parametrize("release", ["2022", "2023"])
def test_a_file_of_the_present_form_that_is_older(tmp_path: Path, release: str) -> None:
    (tmp_path / "old.yaml").write_text(OF_2023)
    old = load(tmp_path / "old.yaml", apis=APIS)
    kept = today(tmp_path, migrate(tmp_path / "old.yaml", apis=APIS, keep_dialect=True, release=release))
    assert (kept.dialect, kept.policies, kept.tls and kept.tls.auth) == (release, old.policies, True)
    migrated = migrate(tmp_path / "old.yaml", apis=APIS, release=release)
    new = today(tmp_path, migrated)
    assert new.tls is not None
    assert (new.dialect, new.tls.auth, new.runtime_policies) == ("2025", True, True)
    assert (new.log, new.keystore) == (old.log, old.keystore)
    assert new.policies["app"].allow == (r"\/v1/key/*", "/v1/key/create/*")
    assert new.policies["app"].deny == old.policies["app"].deny
    assert "# Our server\n" in migrated.text
    assert "# of the app\n" in migrated.text
    told = sentences(tmp_path, OF_2023, release=release)
    for words in ("changed: the API answers as in 2025", "kept: client certificates are verified", "cross '/' now"):
        assert words in told
    assert "client certificates" not in sentences(tmp_path, OF_2023.replace("c}", "c, auth: off}"), release=release)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("compatibility: '2023'\n" + OF_2023, "this file says what it was written for already, with 'compatibility'"),
        (LEAST, "this file has the form of its time, so that '--release' is not needed"),
    ],
)
def test_a_release_that_is_named_in_vain(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "old.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        migrate(tmp_path / "old.yaml", apis=APIS, release="2023")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "policy: {p: {paths: ['*']}}",
            "changed: the rule '*' of the policy 'p' is left out: it matched nothing, and would match everything",
        ),
        (
            "policy: {p: {paths: [/v1/*]}}",
            r"kept: the rule '/v1/*' of the policy 'p' is written as '\/v1/*', because in '/v1/*' the '*' would cross",
        ),
        (
            "policy: {p: {paths: [/v1/identity/assign/*]}}",
            r"kept: the rule '/v1/identity/assign/*' of the policy 'p' is written as '\/v1/identity/assign/*'",
        ),
        (
            "policy: {a b: {}, a-b: {}, a-b-2: {}, '-': {}}",
            "changed: the policy 'a b' is called 'a-b-3' now, because names are stricter\n"
            "changed: the policy '-' is called 'policy' now, because names are stricter",
        ),
        (
            "policy: {p: {identities: ['', '_', 'all of us']}}",
            "changed: '_' in the policy 'p' is left out: it is nobody's identity\n"
            "changed: 'all of us' in the policy 'p' is left out: it is nobody's identity",
        ),
        (
            "policy: {p: {identities: ['${NOWHERE}', '${ALSO_NOWHERE}']}}",
            "left: set the variables and check the new file with 'kes server --check': {folder}/old.yaml: line 4: the "
            "environment variable 'NOWHERE', for 'policy.p.identities', is not set",
        ),
        (
            "cache: {expiry: {any: '${ZERO}'}}",
            "left: the new file: line 12: 'cache.expiry.any' is the value of the environment variable 'ZERO': a "
            "duration needs a unit",
        ),
    ],
)
def test_what_is_told_of_single_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    monkeypatch.setenv("ZERO", "0")
    assert told.replace("{folder}", str(tmp_path)) in sentences(tmp_path, f"{LEAST}{text}\n")


def test_what_was_left_to_flags_is_left_to_do(tmp_path: Path) -> None:
    left = [line for line in sentences(tmp_path, "keys: {fs: {path: /keys}}").splitlines() if line.startswith("left")]
    assert left == [
        "left: write 'admin.identity', or go on with the flag '--root', to which the old file left it",
        "left: write 'tls.key', or go on with the flag '--key', to which the old file left it",
        "left: write 'tls.cert', or go on with the flag '--cert', to which the old file left it",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "admin: {identity: x}\ntls: {key: k, cert: c}\nkeystore: {fs: {path: p}}\n",
            "old.yaml: this file is in the present form already. There is nothing to migrate, unless it was written "
            "for a release before October 2023: name that with '--release 2022' (v0.17.2 to v0.22) or '--release 2023'",
        ),
        ("root: x\nkeys: {fs: {}}\n", "no key store is configured"),
        ("root: ${NOWHERE}\nkeys: {fs: {path: p, pth: q}}\n", "unknown key 'pth'"),
    ],
)
def test_what_cannot_be_migrated(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "old.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)):
        migrate(tmp_path / "old.yaml", apis=APIS)


def test_an_api_key_in_the_place_of_an_identity_is_not_shown(tmp_path: Path) -> None:
    text = LEAST.replace("disabled", "${NOWHERE}") + "policy: {p: {identities: ['kes:v1:hunter2']}}\n"
    assert "an API key in the policy 'p' is left out" in sentences(tmp_path, text)
    assert "hunter2" not in sentences(tmp_path, text)


# --- anything -----------------------------------------------------------------------------------------------------

texts = st.one_of(
    st.sampled_from(
        ["", "on", "~", "null", "<<", "- a", "a: b", "a #b", "'", '"', "é", "${KES_X}", "x\ny\n", " x", "=", "!x"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
rules = st.one_of(
    st.sampled_from(
        ["*", "/*", "/v1/*", "/v1/key/list/*", "/v1/key/list/a*", "/v1/*/*", "/v1/log/err?r", "v1/*", "\\/v1/*"]
    ),
    st.text(st.sampled_from("/v1key*?[a-]\\"), max_size=8),
)
names = st.one_of(st.sampled_from(["p", "a b", "a-b", "_", "-", "${KES_X}", "é"]), texts).filter(bool)
durations = st.sampled_from(["0", "-0", "0s", "1m30s", "1h"])


def some(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


documents = st.fixed_dictionaries(
    {"keys": st.fixed_dictionaries({"fs": st.fixed_dictionaries({"path": texts.filter(str.strip)})})},
    optional={
        "address": st.sampled_from([":80", "1.2.3.4", "[::1]:80", ""]),
        "root": texts,
        "tls": some(key=texts, cert=texts, proxy=some(identities=st.just([]))),
        "cache": some(expiry=some(any=durations, unused=durations)),
        "log": some(error=st.sampled_from(["on", "off", ""]), audit=st.sampled_from(["ON", "off"])),
        "policy": st.dictionaries(
            names,
            st.one_of(st.none(), some(paths=st.lists(rules, max_size=4), identities=st.lists(texts, max_size=2))),
            max_size=4,
        ),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much], deadline=None)
@given(documents, st.booleans())
def test_any_file_means_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: dict[str, Any], flow: bool
) -> None:
    monkeypatch.setenv("KES_X", "from-outside")
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=True, default_flow_style=flow, sort_keys=False))
    try:
        load(path, apis=APIS)
    except ConfigError:
        return
    assert_same_meaning(tmp_path, path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.recursive(
        st.one_of(texts, st.none()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(
                    [
                        "root",
                        "keys",
                        "keystore",
                        "fs",
                        "path",
                        "vault",
                        "policy",
                        "p",
                        "paths",
                        "identities",
                        "tls",
                        "proxy",
                        "log",
                        "error",
                        "file",
                        "cache",
                        "expiry",
                        "all",
                        "any",
                    ]
                ),
                inner,
                max_size=5,
            ),
        ),
        max_leaves=30,
    )
)
def test_any_text_is_migrated_or_a_config_error(tmp_path: Path, tree: Any) -> None:
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
    with contextlib.suppress(ConfigError):
        assert isinstance(migrate(tmp_path / "old.yaml", apis=APIS), Migrated)
