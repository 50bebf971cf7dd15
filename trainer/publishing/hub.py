"""A published folder on the Hugging Face hub, by huggingface_hub and the user's own login. The only thing that sends.

It could not be run against the hub where this was written (no network); tests run it against a server of their own.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from trainer.errors import ConfigError, RunError

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def check_repo(repo: str) -> str:
    """The repository's name itself. Raises: ConfigError if it can't be one."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError(f"--repo is {repo[:100]!r}; allowed: owner/name, of letters, digits, '.', '-' and '_'.")
    return repo


def push(folder: Path, repo: str, private: bool) -> str:
    """Send the folder's files; where they then are. Raises: RunError if there is no login, or the hub refuses."""
    api = HfApi()
    try:
        if not api.token and not get_token():
            raise RunError("there is no login for the hub; run `hf auth login` first.")
        api.create_repo(check_repo(repo), private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a LoRA made with Velatura")
    except LocalTokenNotFoundError:
        raise RunError("there is no login for the hub; run `hf auth login` first.") from None
    except OfflineModeIsEnabled:
        raise RunError("the hub is switched off here by HF_HUB_OFFLINE; take that away to publish.") from None
    except HfHubHTTPError as error:
        raise RunError(f"the hub refused {repo}: {str(error)[:500]}") from None
    except Exception as error:
        # Of the HTTP library's errors, which the hub's passes on; which library that is depends on its version.
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in ("httpx", "httpx2"):
            raise
        raise RunError(f"the hub could not be reached: {str(error)[:300]}") from None
    return f"{api.endpoint}/{repo}"
