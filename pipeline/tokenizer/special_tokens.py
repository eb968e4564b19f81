"""The special tokens of SmolLM2, in the order of their ids, and the sizes that follow from them."""

from __future__ import annotations

EOS_TOKEN = "<|endoftext|>"

SPECIAL_TOKENS = (
    EOS_TOKEN,
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<jupyter_script>",
    "<empty_output>",
)

# every byte has a token of its own, so that no text loses one
MIN_VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
