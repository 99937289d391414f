"""One object of each name: the operations of a store, with servers that answer wrongly."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.object_store import proxy, use_endpoint

from nti_batch.files import OutputError
from nti_batch.output import bucket as module
from nti_batch.output.bucket import Bucket


def test_an_object_is_put_read_listed_and_removed(bucket: str, tmp_path: Path):
    store = Bucket(f"{bucket}/run")
    assert store.read("a/x[0] ü%.json") is None
    assert store.version("a/x[0] ü%.json") is None
    assert store.put_if_absent("a/x[0] ü%.json", b"one")
    assert not store.put_if_absent("a/x[0] ü%.json", b"two")
    assert store.read("a/x[0] ü%.json") == b"one"
    store.put("a/x[0] ü%.json", b"three")
    (tmp_path / "big").write_bytes(bytes(6 << 20))
    store.put_file("b/big.tar", tmp_path / "big")
    store.download("b/big.tar", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == bytes(6 << 20)
    assert list(store.list("a")) == ["x[0] ü%.json"]
    assert Bucket(f"{bucket}/other").read("a/x[0] ü%.json") is None
    store.remove("a/x[0] ü%.json")
    store.remove("a/x[0] ü%.json")
    assert list(store.list("a")) == []


def test_one_of_many_puts_succeeds(bucket: str):
    store = Bucket(bucket)
    with ThreadPoolExecutor(8) as threads:
        puts = threads.map(lambda n: (n % 5, store.put_if_absent(f"name-{n % 5}", str(n).encode())), range(40))
    assert Counter(name for name, is_first in puts if is_first) == dict.fromkeys(range(5), 1)


def test_a_put_whose_answer_is_lost_finds_its_own_bytes(bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch):
    with proxy(s3_port) as between:
        use_endpoint(monkeypatch, between.port)
        lost = iter(["lost"])
        between.rule = lambda method, path: next(lost, None) if method == "PUT" else None
        assert not Bucket(bucket).put_if_absent("name", b"own")
        assert Bucket(bucket).read("name") == b"own"


@pytest.mark.parametrize("status", [500, 503])
def test_an_operation_is_repeated_after_an_answer_of_the_server_that_says_so(
    bucket: str, s3_port: int, status: int, monkeypatch: pytest.MonkeyPatch
):
    with proxy(s3_port) as between:
        use_endpoint(monkeypatch, between.port)
        answers = iter([status, status, None, status])
        between.rule = lambda method, path: next(answers, None)
        assert Bucket(bucket).put_if_absent("name", b"own")
        assert Bucket(bucket).read("name") == b"own"


def test_a_refused_access_is_named_and_not_tried_again(bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch):
    with proxy(s3_port) as between:
        use_endpoint(monkeypatch, between.port)
        between.rule = lambda method, path: 403
        with pytest.raises(OutputError, match=f"{bucket}/name cannot be written: .*give credentials"):
            Bucket(bucket).put("name", b"")
        assert len(between.requests) == 1


def test_a_store_that_never_answers_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch):
    use_endpoint(monkeypatch, 9)
    monkeypatch.setattr(module, "RETRY_DELAYS", ())
    with pytest.raises(OutputError, match=f"{bucket}/name cannot be read: .*run the same command again"):
        Bucket(bucket).read("name")


@pytest.mark.parametrize("name", ["a/../run", "a//run", "./run"])
def test_an_address_that_no_object_can_have_is_refused(name: str):
    with pytest.raises(ValueError, match=f"'s3://bucket/{name}' has an empty part, '.' or '..'"):
        Bucket(f"s3://bucket/{name}")


def test_a_bucket_that_is_missing_for_a_moment_is_asked_again(
    bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "RETRY_DELAYS", (0.0,))
    with proxy(s3_port) as between:
        use_endpoint(monkeypatch, between.port)
        answers = iter([404])
        between.rule = lambda method, path: next(answers, None)
        Bucket(bucket).put("name", b"own")
        assert Bucket(bucket).read("name") == b"own"


def test_a_store_that_ignores_the_condition_is_refused(bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch):
    Bucket(bucket).check_condition()
    with proxy(s3_port) as between:
        use_endpoint(monkeypatch, between.port)
        between.rule = lambda method, path: "unconditional"
        with pytest.raises(ValueError, match=f"'{bucket}' is in a store that ignores the condition"):
            Bucket(bucket).check_condition()


def test_a_bucket_that_does_not_exist_is_named(bucket: str):
    with pytest.raises(ValueError, match=r"s3://nowhere/run/probe-\S+ cannot be written, since there .*: create it"):
        Bucket("s3://nowhere/run").check_condition()


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "azure")])
def test_the_package_that_a_store_needs_is_named(scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ValueError, match=rf"'{scheme}://b/run' is in an object .*: pip install 'nti-batch\[{extra}\]'"):
        Bucket(f"{scheme}://b/run")
