"""How a report looks: the page's own ground and paints, by day and by night, from a phone's width up."""

STYLE = """
:root { color-scheme: light dark; --ground: #faf8f4; --sheet: #fff; --line: #e6dfd4; --ink: #2d2926; --quiet: #7d7267; --sienna: #a04e2b;
--teal: #23777e;
  --gold: #a87a16; --bad: #b3261e; --pale: #b9ad9d; }
@media (prefers-color-scheme: dark) { :root { --ground: #151312; --sheet: #1f1c1a; --line: #3a3531; --ink: #ece6dd; --quiet: #a79b8b;
--sienna: #dc8a5f;
  --teal: #5fbcc3; --gold: #dcb04f; --bad: #ff8f83; --pale: #6f665c; } }
* { box-sizing: border-box; }
body { background: var(--ground); color: var(--ink); font: 15px/1.55 ui-sans-serif, system-ui, "Segoe UI", Roboto, sans-serif; margin: 0 auto;
max-width: 66rem;
  padding: 1.2rem 1rem 3rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: .4rem 0 .2rem; overflow-wrap: anywhere; } h2 { font-size: 1.12rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .4rem; }
h3.prompt { font-weight: 500; color: var(--quiet); overflow-wrap: anywhere; }
p { margin: .2rem 0 .7rem; } .facts, .quietly { color: var(--quiet); } .facts { font-size: .9rem; }
p.bad { color: var(--bad); white-space: pre-wrap; }
section, .box { background: var(--sheet); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.1rem; margin: 1rem 0; }
.box { border-left: 5px solid var(--pale); } .box.good { border-left-color: var(--teal); } .box.bad { border-left-color: var(--bad); }
.box p { margin-bottom: 0; } .box.bad h2 { color: var(--bad); }
ul { margin: 0; padding-left: 1.2rem; } li { margin: .25rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; } pre { overflow: auto; font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--quiet); font: 11px ui-sans-serif, system-ui, sans-serif; }
svg text.small { font-size: 9.5px; }
svg polyline, svg path { fill: none; stroke-width: 2; stroke-linejoin: round; } svg .grid { stroke: var(--line); stroke-width: 1; }
svg .base { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 4 4; } svg .interval { stroke-width: 5; opacity: .28; stroke-linecap: round; }
svg .held { stroke: var(--teal); } svg .own { stroke: var(--sienna); } svg .drift { stroke: var(--gold); } svg .quiet { stroke: var(--pale); }
svg polyline.quiet { stroke-width: 1; } svg circle.held, svg rect.held { fill: var(--teal); stroke: none; }
svg circle.own { fill: var(--sienna); stroke: none; }
svg circle.drift { fill: var(--gold); stroke: none; } svg rect.quiet { fill: var(--pale); stroke: none; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; color: var(--quiet); margin-bottom: .3rem; }
.chart i { display: inline-block; width: 1.2em; height: 3px; border-radius: 2px; margin-right: .4em; vertical-align: middle; }
i.held { background: var(--teal); } i.own { background: var(--sienna); } i.drift { background: var(--gold); } i.quiet { background: var(--pale); }
.strip { display: flex; gap: .6rem; overflow-x: auto; padding-bottom: .4rem; } .strip figure { flex: none; width: 128px; }
.strip img { display: block; width: 128px; border-radius: 4px; } .strip figcaption { font-size: 12px; color: var(--quiet); }
.alarm { display: block; color: var(--bad); }
table { border-collapse: collapse; font-size: .92rem; }
td, th { text-align: left; vertical-align: top; padding: .25rem 1.1rem .25rem 0; border-top: 1px solid var(--line); }
tr:first-child th { border-top: 0; color: var(--quiet); font-weight: 500; } .numbers td { font-variant-numeric: tabular-nums; }
tr.best td { font-weight: 600; }
.wide { overflow-x: auto; } td.words { overflow-wrap: anywhere; min-width: 9rem; }
td.thumb img { display: block; max-width: 72px; max-height: 72px; border-radius: 4px; }
table.pictures { margin-top: 1rem; width: 100%; } details { margin-top: .8rem; } summary { cursor: pointer; color: var(--quiet); }
@media (max-width: 34rem) { body { padding: .6rem .5rem 2rem; } section, .box { padding: .8rem .7rem; } td, th { padding-right: .6rem; } }
"""
