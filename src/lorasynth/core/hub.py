"""The Hugging Face hub: folders fetched from it and uploaded to it, each error in one line."""

from pathlib import Path
from typing import Any, TypedDict, Unpack

from lorasynth.core.card import name_repository
from lorasynth.core.errors import BundleError, LorasynthError, reason_of
from lorasynth.core.places import HUB, repository


class Upload(TypedDict, total=False):
    """How a repository is written to; all may be left out.

    Attributes:
        private: whether only its owner sees a repository that is made anew.
        revision: branch to commit to.
        create_pr: open a pull request in place of a commit.
        commit_message: what it says.
        token: of the hub; default: that of `hf auth login`.
    """

    private: bool
    revision: str
    create_pr: bool
    commit_message: str
    token: str


def fetch(
    name: str,
    what: str,
    *,
    error: type[LorasynthError] = BundleError,
    **options: Any,
) -> Path:
    """The folder in the cache that holds a repository, fetched where it is not there yet.

    Args:
        name: of the repository, owner/name.
        what: how messages call what is in it, such as "a synthesizer".
        error: what is raised.
        **options: of `snapshot_download`.

    Raises:
        LorasynthError: it is not there, or cannot be fetched.
    """
    from huggingface_hub import snapshot_download  # only what is on the hub needs it

    try:
        return Path(snapshot_download(name, **options))
    except Exception as why:  # the hub's own errors share no base with those of the network
        raise error(
            f"{what} must be a folder or {HUB}owner/name, but {HUB}{name} is not usable "
            f"({reason_of(why)})"
        ) from why


def upload(folder: Path, name: str, **options: Unpack[Upload]) -> str:
    """Commit all files of a folder to a repository, which is made if there is none.

    Args:
        folder: what to upload; its model card is told the repository's name.
        name: of the repository, owner/name.
        **options: see `Upload`.

    Returns:
        The address of the commit or pull request.

    Raises:
        LorasynthError: the hub refuses it, or is not reached.
    """
    from huggingface_hub import HfApi

    name = repository(f"{HUB}{name.removeprefix(HUB)}") or name
    name_repository(folder, name)
    hub = HfApi(token=options.get("token"))
    try:
        hub.create_repo(name, private=options.get("private"), exist_ok=True)
        revision = options.get("revision")
        if revision is not None and not revision.startswith("refs/"):
            hub.create_branch(name, branch=revision, exist_ok=True)
        made = hub.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            create_pr=options.get("create_pr", False),
            commit_message=options.get("commit_message", "Upload by lorasynth"),
        )
    except Exception as error:
        raise LorasynthError(
            f"a repository is uploaded to the hub with a token that may write, but {name} was not "
            f"({reason_of(error)})"
        ) from error
    return str(made.pr_url or made.commit_url)
