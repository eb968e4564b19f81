"""What every talk with MLflow has in common: short patience, failures as one line, and no secret in any of them.

Credentials and certificates are those of MLflow's own environment variables (MLFLOW_TRACKING_USERNAME, …_PASSWORD,
…_TOKEN, …_SERVER_CERT_PATH, …_CLIENT_CERT_PATH). They may also stand in the server's URI, which is shown, logged and
written down without them. Imports neither mlflow nor anything else that takes long.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from checkpoint.manifest import CheckpointError

_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# SQLAlchemy takes a password with / in it as it stands; up to the last @, which may be an unescaped one of a password
_CREDENTIALS = re.compile(r"(?<=://)(?:[^:/\s]*:[^@\s]*(?:@[^?\s]*)?|[^/\s]+)@")
_SECRET_PARAMETER = re.compile(r"(?i)((?:password|passwd|token|secret)=)[^&\s;]+")
_MIN_SECRET_CHARACTERS = 4  # what is shorter would take words apart, and keeps nobody out


class TrackingError(CheckpointError):
    """MLflow cannot be reached or does not take what it is sent; the next pass tries again."""


def public_uri(uri: str) -> str:
    """Without user name, password and token."""
    return _SECRET_PARAMETER.sub(r"\1…", _CREDENTIALS.sub("", uri))


def without_secrets(text: str, *, uri: str) -> str:
    """A text with the credentials of the server's URI and of the environment left out, wherever they stand in it."""
    secrets = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    for user in _CREDENTIALS.findall(uri):
        password = user.removesuffix("@").partition(":")[2]
        # of one with an @, a client takes what comes after it for the host, and says so
        secrets |= {password, unquote(password), *password.split("@")}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _MIN_SECRET_CHARACTERS:
            text = text.replace(secret, "…")
    return public_uri(text)


@contextmanager
def errors_in_one_line(uri: str) -> Iterator[None]:
    """Raises TrackingError for whatever MLflow, its database or the way to it do."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ConnectionError) as error:
        raise _refused(error, uri) from None


@contextmanager
def artifact_errors_in_one_line(uri: str) -> Iterator[None]:
    """Raises TrackingError for whatever an artefact store does: each has a library with errors of its own (requests,
    boto3, …). What is wrong with the local file stays an OSError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _refused(error, uri) from None


def _refused(error: Exception, uri: str) -> TrackingError:
    reason = without_secrets(" ".join(str(error).split()), uri=uri)[:200]
    return TrackingError(f"MLflow at {public_uri(uri)} did not answer or refused: {reason}")


def quieten() -> None:
    """Before mlflow is imported: fail fast when the server is gone, ask no other host, keep to warnings.

    MLflow reads these from the environment alone, and what the user has set stays as it is.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # it prints the server's URI, with the password that may stand in it
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for name in ("alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
