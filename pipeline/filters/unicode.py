"""Text that was decoded with the wrong encoding repaired, characters composed. Drops nothing."""

from __future__ import annotations

from pipeline.filter_config import UnicodeConfig
from pipeline.filters.view import DocumentView
from pipeline.normal_forms import normalized


def rejection(view: DocumentView, config: UnicodeConfig) -> None:
    """None: every document stays, with its text changed where there was something to mend.

    Of ftfy's repairs those are left out that change what an author may have meant: quotes, ligatures and full-width
    characters stay as they are.
    """
    text = view.text
    # ftfy finds nothing to mend in ASCII but escapes of HTML and of terminals, and line breaks
    if config.repair:
        import ftfy

        text = ftfy.fix_text(
            text,
            uncurl_quotes=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            normalization=None,
            explain=False,
        )
    if config.normalization is not None:
        text = normalized(text, form=config.normalization)
    view.text = text
