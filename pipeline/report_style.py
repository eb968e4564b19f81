"""The style sheet of report.html: light or dark as the reader's system is, black on white on paper.

The eight colours are those of Okabe and Ito (Color Universal Design, 2008), which colour-blind readers tell apart.
"""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1b2330; --soft: #5b6675;
  --line: #d9dee5; --heat: 213, 94, 0;
  --c0: #0072b2; --c1: #e69f00; --c2: #009e73; --c3: #cc79a7; --c4: #56b4e9; --c5: #d55e00; --c6: #c9b90c;
  --c7: #8a929c; --kept: #009e73; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #12161c; --card: #1b2129; --ink: #e6e9ee;
  --soft: #9aa5b3; --line: #2e3742; --c0: #3d9bdc; --c2: #16b78b; --kept: #16b78b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 24px 60px; max-width: 1120px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 27px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 38px 0 4px; }
h3 { font-size: 14px; margin: 0 0 6px; font-weight: 600; }
p.said { color: var(--soft); margin: 2px 0 12px; max-width: 80ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px; margin-top: 18px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; white-space: nowrap; font-size: 23px; font-weight: 650; letter-spacing: -0.02em; }
.tile span { color: var(--soft); font-size: 13px; }
.tile i { display: block; font-style: normal; font-size: 12.5px; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; font-size: 13px; color: var(--soft); border-bottom: 1px solid var(--line); }
th, td { padding: 5px 10px 5px 0; vertical-align: middle; }
td { border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; } td.n { white-space: nowrap; padding-left: 8px; }
td.bar { width: 26%; min-width: 150px; }
tr.total td { font-weight: 650; }
svg.histogram { width: 100%; height: auto; display: block; }
svg.share rect { shape-rendering: crispEdges; }
svg.share { width: 100%; height: 14px; display: block; border-radius: 3px; }
svg.key { width: 10px; height: 10px; margin-right: 5px; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.c0 { fill: var(--c0); } .c1 { fill: var(--c1); } .c2 { fill: var(--c2); } .c3 { fill: var(--c3); }
.c4 { fill: var(--c4); } .c5 { fill: var(--c5); } .c6 { fill: var(--c6); } .c7 { fill: var(--c7); }
.kept { fill: var(--kept); } .rest { fill: var(--line); }
.legend { margin: 8px 0 12px; font-size: 13px; } .legend span { margin-right: 16px; white-space: nowrap; }
details { border-bottom: 1px solid var(--line); padding: 6px 0; }
summary { cursor: pointer; } summary b { font-weight: 600; } summary span { color: var(--soft); }
.examples { max-height: 420px; overflow-y: auto; }
.example { margin: 8px 0 8px 18px; font-size: 13px; }
.example code { color: var(--soft); font-size: 12px; overflow-wrap: anywhere; }
.example q { display: block; quotes: none; background: var(--card); border-left: 3px solid var(--line);
  padding: 4px 9px; margin-top: 2px; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; }
  .card, .tile, tr, .example { break-inside: avoid; } h2, .legend { break-after: avoid; }
  .scroll, .examples { overflow: visible; max-height: none; } * { print-color-adjust: exact; } }
"""
