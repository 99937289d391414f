"""Shards in an S3 bucket, which moto's server on loopback stands for."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers.jobs import arguments, ids
from helpers.tiny import captioned, write_shard

from nti_batch.cli import main
from nti_batch.data import download, object_stores
from nti_batch.data.shard_reader import ShardReader, read_keys
from nti_batch.data.shards import expand_shards

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("obstore")

SECRET = "SECRET-OF-THE-STORE"
OBJECTS = ("a/10.tar", "a/9.tar", "a/notes.txt", "a/b/2.tgz", "a b[1].tar", "odd/x#y.tar")


@pytest.fixture
def endpoint(s3_port: int) -> str:
    return f"http://127.0.0.1:{s3_port}"


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A bucket of three images in each object, whatever its name; no other configuration of AWS than this is seen."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr(download, "RETRY_DELAYS", (0.0, 0.0))
    object_stores._open_to_read.cache_clear()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    content = write_shard(tmp_path / "s.tar", captioned(3)).read_bytes()
    for name in OBJECTS:
        client.put_object(Bucket="bucket", Key=name, Body=content)
    yield client
    object_stores._open_to_read.cache_clear()


def test_a_job_reads_the_shards_that_a_glob_in_a_bucket_matches(
    bucket: object, tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(arguments(tiny_model, "s3://bucket/a/*.tar", out)) == 0
    assert ids(out) == [(shard, f"{i:03}") for shard in ("10", "9") for i in range(3)]
    assert main(["verify", str(out)]) == 0
    written = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert SECRET not in "".join(capfd.readouterr())
    assert not any(SECRET.encode() in content for content in written)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("s3://bucket/a/*.tar", ["a/10.tar", "a/9.tar"]),
        ("s3://bucket/a/{9,10}.tar", ["a/9.tar", "a/10.tar"]),
        ("s3://bucket/a/{9,1}*.tar", ["a/9.tar", "a/10.tar"]),
        ("s3://bucket/a/[0-9].tar", ["a/9.tar"]),
        ("s3://bucket/a/?.tar", ["a/9.tar"]),
        ("s3://bucket/a/", ["a/10.tar", "a/9.tar", "a/b/2.tgz"]),
        ("s3://bucket/a/**/*.tgz::s3://bucket/a/9.tar", ["a/b/2.tgz", "a/9.tar"]),
        ("s3://bucket/a b*", ["a b[1].tar"]),
    ],
)
def test_globs_braces_and_folders_of_a_bucket_match_its_tars(bucket: object, pattern: str, found: list[str]):
    shards = expand_shards(pattern)
    assert shards == [f"s3://bucket/{name}" for name in found]
    assert read_keys(shards[0]) == (["000", "001", "002"], [])


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("s3://bucket/z/*.tar", "no file matches 's3://bucket/z/*.tar'"),
        ("s3://bucket/a/n*", "no tar matches 's3://bucket/a/n*'"),
        ("s3://nobody/*.tar", "'s3://nobody/*.tar' cannot be listed: the store answers 404 Not Found, NoSuchBucket"),
        ("s3://key:PW@bucket/a/*.tar", "'s3://bucket/a/*.tar' has credentials, which belong elsewhere"),
        ("s3://bucket/x#y.tar", "shard 's3://bucket/x' goes on with '?' or '#'"),
        ("s3:///a.tar", "'s3:///a.tar' has no bucket"),
        ("s3:bucket/a.tar", "'s3:bucket/a.tar' has no bucket"),
        ("s3://bucket/odd/*", "shard 's3://bucket/odd/x' goes on with '?' or '#'"),
    ],
)
def test_what_cannot_be_listed_is_one_sentence(
    bucket: object, tiny_model: Path, tmp_path: Path, pattern: str, error: str, capfd: pytest.CaptureFixture[str]
):
    assert main(arguments(tiny_model, pattern, tmp_path / "out")) == 2
    printed = "".join(capfd.readouterr())
    assert error in printed
    assert not [secret for secret in ("Traceback", "PW", SECRET) if secret in printed]


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("s3://bucket/no.tar", "the store answers 404 Not Found, NoSuchKey"),
        ("s3://nobody/a.tar", "the store answers 404 Not Found, NoSuchBucket"),
    ],
)
def test_a_shard_that_is_not_there_is_a_failed_shard(bucket: object, address: str, error: str):
    keys, errors = read_keys(address)
    assert keys == []
    assert errors == [f"{error}, after 0 keys"]


def test_an_object_that_changes_while_it_is_read_fails_the_shard(bucket: object):
    """It is replaced behind its first bytes, and their connection is lost."""
    reading = download.Download(partial(object_stores.request_object, "s3://bucket/a/9.tar"), lambda: False, 10.0)
    reading.readinto(bytearray(512))
    bucket.put_object(Bucket="bucket", Key="a/9.tar", Body=b"another")  # type: ignore[attr-defined]
    reading._unread, reading._offset = memoryview(b""), 512
    reading._hang_up()
    with pytest.raises(OSError, match="the object has changed in the store while it was read"):
        reading.readinto(bytearray(512))


def test_a_profile_gives_credentials_region_and_endpoint(
    bucket: object, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile own]\nregion = eu-west-1\nendpoint_url = {endpoint}\n"
        f"aws_access_key_id = key\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "own")
    assert expand_shards("s3://bucket/a/9*") == ["s3://bucket/a/9.tar"]
    assert read_keys("s3://bucket/a/9.tar") == (["000", "001", "002"], [])
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ValueError, match="cannot be listed: The config profile \\(nobody\\) could not be found"):
        expand_shards("s3://bucket/a/9*")


def test_without_credentials_requests_are_not_signed(bucket: object, monkeypatch: pytest.MonkeyPatch):
    bucket.put_object_acl(Bucket="bucket", Key="a/9.tar", ACL="public-read")  # type: ignore[attr-defined]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert object_stores._access("s3")["skip_signature"]
    assert read_keys("s3://bucket/a/9.tar") == (["000", "001", "002"], [])
    _, (error,) = read_keys("s3://bucket/a/10.tar")
    assert error.startswith("the store answers 403 Forbidden")


def test_a_store_that_does_not_answer_is_tried_again_and_named(bucket: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    reader = ShardReader("s3://bucket/a/9.tar", lambda key: False, {}, "txt")
    assert list(reader) == []
    assert "(tried 3 times), after 0 keys" in reader.errors[0]
