"""Converts an export to CTranslate2's format and scores rows of ids with it; prints the loss as JSON.

python with_ctranslate2.py EXPORT ROWS.json FOLDER
"""

import json
import sys
from pathlib import Path

import ctranslate2

export, rows_file, folder = sys.argv[1:]
ctranslate2.converters.TransformersConverter(export).convert(folder)
rows, tokens = (json.loads(Path(name).read_text()) for name in (rows_file, f"{folder}/vocabulary.json"))
scores = ctranslate2.Generator(folder, compute_type="float32").score_batch([[tokens[at] for at in row] for row in rows])
losses = [-score for row in scores for score in row.log_probs]
print(json.dumps({"version": ctranslate2.__version__, "loss": sum(losses) / len(losses)}))
