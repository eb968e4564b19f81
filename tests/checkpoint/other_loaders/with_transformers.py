"""Loads an export as a user of an older transformers does; prints what it finds as JSON. Imports nothing of ours.

python with_transformers.py EXPORT ROWS.json TEXT
"""

import json
import sys
from pathlib import Path

import torch
import transformers

export, rows_file, text = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(export, torch_dtype="auto").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(export)
total, count = 0.0, 0
with torch.inference_mode():
    for row in json.loads(Path(rows_file).read_text()):
        ids = torch.tensor([row])
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(row) - 1
written = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, do_sample=False)
found = {
    "version": transformers.__version__,
    "loss": total / count,
    "dtype": str(model.dtype),
    "ids": tokenizer(text).input_ids,
    "generated": written[0].tolist(),
}
print(json.dumps(found))
