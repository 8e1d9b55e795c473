"""What the hub's refusals mean, in a sentence and what to do; a token is in no message."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ollama_tune.core.errors import TuneError
from ollama_tune.core.text import one_line


def transport_error() -> type[Exception]:
    """The base error of the HTTP library that huggingface_hub was built on (httpx, or its successor)."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


@contextlib.contextmanager
def hub_errors(source: str, kind: str = "model") -> Iterator[None]:
    """Turn what huggingface_hub raises into a sentence and what to do; `kind` is what was asked for."""
    try:
        yield
    except TuneError:
        raise
    except (transport_error(), OSError, ValueError) as error:
        what, fix = _explain(source, kind, error)
        raise TuneError(what, fix, details=_without_token(repr(error))) from error


def _without_token(text: str) -> str:
    """Details without the person's token, whoever may have put it there."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(token)") if token else text


def _explain(source: str, kind: str, error: Exception) -> tuple[str, str]:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if response is not None and status is not None:
        said = _without_token(response.headers.get("X-Error-Message") or "")
        return _refused(source, kind, error, status, said)
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{source} is not downloaded, and HF_HUB_OFFLINE is set.",
            f"Unset it, or choose a local {kind}.",
        )
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return (
            f"{error.filename} cannot be written: {error.strerror}.",
            "Free some space or check permissions.",
        )
    if isinstance(error, ValueError):
        return f"The hub's answer about {source} makes no sense.", f"Try again, or choose another {kind}."
    return (
        f"The hub cannot be reached, so {source} is not available.",
        f"Check the connection, or choose a {kind} that is on this machine.",
    )


def _refused(source: str, kind: str, error: Exception, status: int, said: str) -> tuple[str, str]:
    """The hub answers 401 for what it hides as well as for a wrong token; its own words tell them apart."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{source if kind == 'model' else 'datasets/' + source}"
    token = bool(get_token())
    if status == 401 and token and ("credential" in said.lower() or "token" in said.lower()):
        return (
            "The hub does not take your Hugging Face token; it may have expired.",
            "Log in again with `hf auth login`, or unset HF_TOKEN.",
        )
    if isinstance(error, errors.DisabledRepoError):
        return f"The hub has switched the {kind} {source} off.", f"Choose another {kind}."
    if isinstance(error, errors.GatedRepoError) or status == 403:
        what = f"The {kind} {source} is given only to people who accepted its licence"
        if token:
            return f"{what}, and your account has not been let in.", f"Ask for it on {page}, then try again."
        return f"{what}.", f"Accept it on {page}, then log in with `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"The {kind} {source} has no such revision.", "Leave the revision empty for the newest."
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        known = "" if token else f"; for a private {kind} log in with `hf auth login`"
        return f"The hub knows no {kind} {source}, or it is private.", f"Check the name{known}."
    if status == 429:
        return f"The hub asks for a pause before it gives more of {source}.", "Try again in some minutes."
    words = f" ({one_line(said, 80)})" if said else ""
    return f"The hub answered with error {status} for {source}{words}.", "Try again in some minutes."
