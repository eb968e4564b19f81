"""Copies a proven export to another place, so that what arrives there is what was proven, byte for byte.

Nothing is ever replaced. Files go one by one, so that a publication that was cut short goes on where it was; each is
checked by digest against the proof when it has arrived; `latest` moves last, and never back. A place is one run's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from checkpoint.export_folder import CARD_FILE, PROOF_FILE, digest_export, digest_file, find_export
from checkpoint.lock import exclusive_lock
from checkpoint.manifest import CheckpointError, export_directory, step_name
from checkpoint.publication import Destination, Publication, PublicationError, note_published
from checkpoint.run_record import RUN_FILE, read_run


def publish_export(run: Path, step: int, url: str) -> Publication:
    """Publish the export of a step at `url`: /a/folder, s3://BUCKET/PREFIX or hf://OWNER/NAME.

    Raises PublicationError for an export that is not proven or is not what was proven, and for a destination that
    holds something else in its place or is another run's; UnreachableError for one that does not answer; LockBusyError
    if another process publishes the run.
    """
    record = read_run(run)
    destination = open_destination(url, run_name=_folder_name(run, record.name))
    busy = f"another publication of {run} is under way; wait for its end"
    with exclusive_lock(run / "service" / ".publication.lock", busy=busy):
        folder, digests = proven_files(run, step)
        with destination.claim(record.run_key):
            done = _send(destination, step, folder, digests)
        note_published(run, step, url)
    return done


def _send(destination: Destination, step: int, folder: Path, digests: Mapping[str, str]) -> Publication:
    missing = {}
    for name, wanted in digests.items():
        got = destination.digest(step, name)
        if got is None:
            missing[name] = folder / name
        elif name != CARD_FILE:  # which may have been written anew since
            _compare(destination.location(step), name, got=got, wanted=wanted, why="remove it, or publish elsewhere")
    if missing:
        destination.create(step, missing)
    for name in missing:
        got = destination.digest(step, name) or "nothing"
        why = "it did not arrive whole; remove it and publish again"
        _compare(destination.location(step), name, got=got, wanted=digests[name], why=why)
    destination.complete(step)
    latest = destination.move_latest(step, {name: folder / name for name in digests})
    return Publication(destination.location(step), sent=len(missing), found=len(digests) - len(missing), latest=latest)


def proven_files(run: Path, step: int) -> tuple[Path, dict[str, str]]:
    """An export's folder, and the digests of its files, the card's and the proof's own included, which come last.

    Raises PublicationError if there is no proven export of the step, or if a file is not what was proven.
    """
    export = find_export(run, step)
    if export is None:
        raise PublicationError(f"{step_name(step)} of {run} is not exported; run `smollm2 checkpoint export {run}`")
    if not export.passed or export.directory != export_directory(run, step):
        reasons = "; ".join(export.proof.reasons)
        raise PublicationError(f"{step_name(step)} of {run} failed its proof ({reasons}); publish another step")
    now = digest_export(export.directory)
    proven = export.proof.files
    changed = sorted(name for name in now.keys() | proven.keys() if now.get(name) != proven.get(name))
    if changed:
        raise PublicationError(
            f"{export.directory} is not what was proven ({', '.join(changed)}); run `smollm2 checkpoint prove {run} "
            f"--step {step}`"
        )
    beside = [name for name in (CARD_FILE, PROOF_FILE) if (export.directory / name).is_file()]
    return export.directory, now | {name: digest_file(export.directory / name) for name in beside}


def open_destination(url: str, *, run_name: str) -> Destination:
    """The place that a URL names. Raises CheckpointError for a URL of another kind, or without what it needs."""
    if url.startswith("s3://"):
        from checkpoint.destinations.s3 import S3Destination

        return S3Destination(url, run_name=run_name)
    if url.startswith("hf://"):
        from checkpoint.destinations.hub import HubDestination

        return HubDestination(url)
    if "://" in url:
        wanted = "/a/folder, s3://BUCKET/PREFIX or hf://OWNER/NAME"
        raise CheckpointError(f"{url}: no such kind of destination; wanted {wanted}")
    from checkpoint.destinations.directory import DirectoryDestination

    return DirectoryDestination(Path(url), run_name=run_name)


def _folder_name(run: Path, name: str) -> str:
    """The run's name, unless it leads out of the destination: a run folder may come from anywhere."""
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name:
        raise PublicationError(f"the run's name {name!r} leads out of the destination; change it in {run / RUN_FILE}")
    return name


def _compare(location: str, name: str, *, got: str, wanted: str, why: str) -> None:
    if got != wanted:
        raise PublicationError(f"{location}/{name} is {got[:19]}…, the proven one is {wanted[:19]}…; {why}")
