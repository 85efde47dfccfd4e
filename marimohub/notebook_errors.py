"""What can be in the way of a change to a notebook. Each error carries a code and a sentence for the user."""

from __future__ import annotations

MAX_TEXT_BYTES = 10 * 1024 * 1024


class NotebookError(Exception):
    """Something the caller can act on; `message` is for the user."""

    code = "notebook_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotFound(NotebookError):
    code = "not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f'There is no notebook "{name}".')


class FileMissing(NotebookError):
    code = "file_missing"

    def __init__(self) -> None:
        super().__init__("Notebook file not found")


class NameTaken(NotebookError):
    code = "name_taken"

    def __init__(self, existing: str) -> None:
        super().__init__(f'A notebook called "{existing}" exists already. Choose another name.')


class NotText(NotebookError):
    code = "not_text"

    def __init__(self, name: str) -> None:
        super().__init__(f'The file of "{name}" is not UTF-8 text. Repair or delete it on disk.')


class TextTooLarge(NotebookError):
    code = "too_large"

    def __init__(self) -> None:
        super().__init__(f"A notebook may have at most {MAX_TEXT_BYTES // 1024 // 1024} MB of text.")


class NotAuthor(NotebookError):
    code = "not_author"

    def __init__(self, name: str) -> None:
        super().__init__(f'Only its author or an administrator can delete "{name}".')


class DeleteLocked(NotebookError):
    code = "locked"

    def __init__(self, holder: str, user: str) -> None:
        whose = "you are editing it" if holder == user else f"{holder} is editing it"
        super().__init__(f"Locked notebooks cannot be deleted until the lock is released; {whose}.")


class SaveRefused(NotebookError):
    """The save was not published; `draft` is the id under which the text is kept for its author."""

    def __init__(self, code: str, message: str, draft: int) -> None:
        super().__init__(message)
        self.code = code
        self.draft = draft


class InvalidText(NotebookError):
    code = "invalid_text"

    def __init__(self) -> None:
        super().__init__("A notebook must be text that UTF-8 can encode, without NUL characters.")


class BaseChanged(NotebookError):
    code = "base_changed"

    def __init__(self, name: str) -> None:
        super().__init__(f'"{name}" was changed by somebody else meanwhile, so this was not published.')


class NoWorkspace(NotebookError):
    code = "no_workspace"

    def __init__(self, name: str) -> None:
        super().__init__(f'There is no workspace "{name}".')


class NoVersion(NotebookError):
    code = "no_version"

    def __init__(self, name: str) -> None:
        super().__init__(f'"{name}" has no such version, or it is no longer kept.')


class NoDraft(NotebookError):
    code = "no_draft"

    def __init__(self) -> None:
        super().__init__("You have no such draft.")


class DraftChanged(NotebookError):
    code = "draft_changed"

    def __init__(self) -> None:
        super().__init__("This draft was changed or discarded meanwhile. Look at it again, then decide.")
