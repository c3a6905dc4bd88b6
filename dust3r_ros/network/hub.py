"""Published models by name: from the Hugging Face cache when they are there, else downloaded into it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import re
from pathlib import Path

from dust3r_ros.errors import CheckpointError
from dust3r_ros.network.checkpoint import CONFIG_FILE, WEIGHTS_FILE

log = logging.getLogger(__name__)

PUBLISHED = {
    "224_linear": "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear",
    "512_linear": "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "512_dpt": "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt",
}
_TRY_SECONDS = 5.0
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def repository_of(name: str) -> str | None:
    """The hub repository a name means: a short name of ``PUBLISHED``, or ``owner/name``; None for neither."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    return name if _REPOSITORY.fullmatch(name) else None


def fetch(repository: str) -> Path:
    """The folder in the local cache with a repository's weights and configuration.

    Files already in the cache are used without the network; others are downloaded and checked against the hub's
    SHA-256. Whether the hub is there is tried once and shortly: a download is tried again and again, and says so.
    Raises CheckpointError saying where the files were looked for and how to get them.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        try:
            config = Path(hf_hub_download(repository, CONFIG_FILE, local_files_only=True))
            hf_hub_download(repository, WEIGHTS_FILE, local_files_only=True)
            return config.parent
        except LocalEntryNotFoundError:
            get_hf_file_metadata(hf_hub_url(repository, WEIGHTS_FILE), timeout=_TRY_SECONDS)
            log.info("downloading %s (about 2.3 GB for the published models) from the Hugging Face hub", repository)
        config = Path(hf_hub_download(repository, CONFIG_FILE))
        weights = Path(hf_hub_download(repository, WEIGHTS_FILE))
    except _download_errors() as error:
        raise CheckpointError(_how_to_get(repository, error)) from error
    _check_sha256(weights)
    return config.parent


def _download_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.utils import HfHubHTTPError, HFValidationError

    errors: tuple[type[Exception], ...] = (OSError, HfHubHTTPError, HFValidationError)
    # The transport of huggingface_hub 1 is httpx, of 2 httpx2; before it was requests, whose errors are OSErrors.
    for transport in ("httpx", "httpx2"):
        if importlib.util.find_spec(transport):
            errors += (importlib.import_module(transport).HTTPError,)
    return errors


def _how_to_get(repository: str, error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import HfHubHTTPError

    place = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    hub = "the hub answers" if isinstance(error, HfHubHTTPError) else "the hub cannot be reached"
    return (
        f"no model {repository}: it is not in {place}, and {hub} ({reason}). Where there is a network, run "
        f"'hf download {repository} {CONFIG_FILE} {WEIGHTS_FILE} --local-dir FOLDER', copy that folder to this machine "
        f"and name it as the checkpoint; 'tiny' and 'geometric' need no download"
    )


def _check_sha256(weights: Path) -> None:
    """The cache names a large file by its SHA-256 as the hub states it; compare."""
    expected = weights.resolve().name
    if not _SHA256.fullmatch(expected):
        return
    digest = hashlib.sha256()
    with weights.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise CheckpointError(
            f"{weights}: damaged download, expected SHA-256 {expected}, got {digest.hexdigest()}; "
            f"delete it and try again"
        )
