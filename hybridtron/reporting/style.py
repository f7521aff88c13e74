"""The style sheet of all pages."""

STYLE = """
:root { --ink:#1f2933; --soft:#52606d; --faint:#7b8794; --line:#e4e7eb; --paper:#ffffff; --ground:#f5f7fa;
  --accent:#0072b2; --warn:#8d4f00; --warn-ground:#fff3dc; }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,sans-serif; }
main { max-width:72rem; margin:0 auto; padding:2.5rem 1.25rem 3rem; }
h1 { margin:.1rem 0 .2rem; font-size:2.1rem; line-height:1.15; letter-spacing:-.01em; }
h2 { margin:0 0 .6rem; font-size:1.15rem; }
h3 { margin:1.1rem 0 .3rem; font-size:.95rem; color:var(--soft); }
.eyebrow { margin:0; color:var(--accent); font-size:.8rem; font-weight:600; letter-spacing:.08em;
  text-transform:uppercase; }
.formula { margin:.2rem 0; color:var(--soft); font-size:1.05rem; }
.source { margin:.4rem 0 0; color:var(--faint); font-size:.9rem; overflow-wrap:anywhere; }
section { margin-top:1.25rem; padding:1.35rem 1.5rem; background:var(--paper); border:1px solid var(--line);
  border-radius:10px; }
.verdict { border-left:5px solid var(--accent); }
.lead { margin:.2rem 0 .6rem; font-size:1.2rem; line-height:1.45; }
.verdict ul { margin:.4rem 0 0; padding-left:1.2rem; }
.verdict li { margin:.35rem 0; }
.note { margin:.1rem 0 .8rem; color:var(--soft); font-size:.9rem; }
.none { color:var(--faint); margin:0; }
figure { margin:0 0 1rem; }
figure:last-child { margin-bottom:0; }
img { display:block; max-width:min(100%, 54rem); margin:0 auto; height:auto; }
table { border-collapse:collapse; font-size:.92rem; font-variant-numeric:tabular-nums; }
th, td { padding:.35rem .75rem .35rem 0; text-align:left; vertical-align:top; }
thead th { color:var(--faint); font-weight:600; font-size:.82rem; border-bottom:2px solid var(--line);
  white-space:nowrap; }
tbody tr + tr > * { border-top:1px solid var(--line); }
tbody th { font-weight:600; white-space:nowrap; }
thead + tbody td { white-space:nowrap; }
thead + tbody td.text { white-space:normal; min-width:16rem; }
thead + tbody td:first-child { padding-left:0; }
td small { display:block; color:var(--faint); }
sup { line-height:0; }
.scroll + table { margin-top:1rem; }
details summary { cursor:pointer; color:var(--accent); }
td table { margin:-.35rem 0; }
td > ul { margin:0; padding-left:1.1rem; }
.keys th { color:var(--soft); font-weight:500; padding-right:1.6rem; }
.keys td { overflow-wrap:anywhere; }
.parameters { width:100%; }
.parameters tbody th { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; }
.parameters td.bar { width:40%; min-width:11rem; white-space:nowrap; }
.track { position:relative; display:inline-block; width:calc(100% - 5.5rem); height:.55rem; border-radius:.3rem;
  background:var(--ground); vertical-align:middle; }
.range { position:absolute; top:0; bottom:0; border-radius:.3rem; background:#9dc6e0; }
.dot { position:absolute; left:50%; top:50%; width:.7rem; height:.7rem; margin:-.35rem; border-radius:50%;
  background:var(--accent); border:2px solid #fff; }
.percent { display:inline-block; width:5rem; margin-left:.5rem; color:var(--faint); font-size:.85rem; }
.scroll { overflow-x:auto; }
.chip { display:inline-block; padding:.05rem .55rem; border-radius:1rem; font-size:.8rem; font-weight:600;
  text-decoration:none; white-space:nowrap; }
.chip.warn { color:var(--warn); background:var(--warn-ground); }
.source .chip { margin-left:.3rem; }
.warnings { margin:0; padding:0; list-style:none; }
.warnings li { padding:.4rem 0; overflow-wrap:anywhere; }
.warnings li + li { border-top:1px solid var(--line); }
footer { margin-top:1.5rem; color:var(--faint); font-size:.85rem; }
@media (max-width:42rem) { section { padding:1.1rem 1rem; } .parameters td.bar { display:none; } }
@media print { body { background:#fff; } section { break-inside:avoid; } }
"""
