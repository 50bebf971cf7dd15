"""How the page looks: thin transparent layers over a toned ground, in the system's own fonts, by day and by night."""

from __future__ import annotations

import gradio as gr
from gradio.themes.utils import colors, sizes

_SIENNA = colors.Color(
    name="sienna",
    c50="#fbf4ef",
    c100="#f5e4d8",
    c200="#eac8b2",
    c300="#dca585",
    c400="#cc7f57",
    c500="#b9623a",
    c600="#a04e2b",
    c700="#823e23",
    c800="#68331f",
    c900="#532a1b",
    c950="#2e150c",
)
_GROUND = colors.Color(
    name="ground",
    c50="#faf8f4",
    c100="#f3efe8",
    c200="#e6dfd4",
    c300="#d2c8b9",
    c400="#a79b8b",
    c500="#7d7267",
    c600="#5e554d",
    c700="#46403a",
    c800="#2d2926",
    c900="#1f1c1a",
    c950="#151312",
)
_FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

HEADER = """
<div class="masthead"><svg viewBox="0 0 64 40" width="52" height="32" role="img" aria-label="three thin layers of paint">
<ellipse cx="22" cy="20" rx="18" ry="15" fill="#b9623a" fill-opacity=".55"/><ellipse cx="34" cy="20" rx="18" ry="15" fill="#2f8086" fill-opacity=".45"/>
<ellipse cx="45" cy="20" rx="17" ry="14" fill="#d9a441" fill-opacity=".45"/></svg>
<div><h1>Velatura</h1><p>Train LoRAs, lay them over one another, see the picture.</p></div></div>
"""

CSS = """
.gradio-container { max-width: 1500px !important; margin: 0 auto !important; width: 100%; }
.masthead { display: flex; gap: .9rem; align-items: center; padding: .2rem .1rem; }
.masthead h1 { font-size: 1.45rem; font-weight: 600; letter-spacing: .02em; margin: 0; line-height: 1.15; }
.masthead p { margin: 0; color: var(--body-text-color-subdued); font-size: .9rem; }
.progress { padding: .35rem .1rem .15rem; }
.progress .line { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .15rem 1rem; }
.progress .line b { overflow-wrap: anywhere; font-weight: 600; }
.progress .state { color: var(--body-text-color-subdued); }
.progress .bar { height: 12px; margin: .45rem 0; border-radius: 6px; background: var(--border-color-primary); overflow: hidden; }
.progress .bar i { display: block; height: 100%; border-radius: 6px; transition: width .6s ease;
  background: linear-gradient(90deg, rgba(217,164,65,.9), rgba(185,98,58,.95) 55%, rgba(47,128,134,.95)); }
.progress.failed .bar i, .progress.stopped .bar i { filter: grayscale(.7); }
.progress.failed .state { color: #c2382b; font-weight: 600; }
.dark .progress.failed .state { color: #ff8f83; }
.progress .detail { font-size: .88rem; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.layer { border-left: 5px solid rgba(185,98,58,.55); padding-left: .6rem; align-items: center !important; }
#layer-2 .layer { border-left-color: rgba(47,128,134,.55); } #layer-3 .layer { border-left-color: rgba(217,164,65,.6); }
#layer-4 .layer { border-left-color: rgba(120,90,150,.5); } #layer-5 .layer { border-left-color: rgba(90,130,70,.5); }
#layer-6 .layer { border-left-color: rgba(160,70,100,.5); }
.beside { align-self: flex-end; }
.canvas img { image-rendering: auto; object-fit: contain; }
.plan p { margin: 0 0 .3rem; font-size: .88rem; color: var(--body-text-color-subdued); }
.plan .shapes { display: flex; flex-wrap: wrap; gap: .35rem 1rem; font-size: .85rem; font-variant-numeric: tabular-nums; }
.plan span { display: inline-flex; align-items: center; gap: .4rem; color: var(--body-text-color-subdued); } .plan b { color: var(--body-text-color); }
.plan i { display: inline-block; border: 1.5px solid #c9602f; border-radius: 2px; background: rgba(201,96,47,.12); }
.notice { border: 1px solid var(--border-color-primary); border-left: 5px solid #a79b8b; border-radius: 8px; padding: .6rem .8rem; margin: .15rem 0 .5rem;
  background: var(--block-background-fill); }
.notice h3 { font-size: 1rem; font-weight: 600; margin: 0; } .notice p { margin: .3rem 0 0; font-size: .92rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.notice.good { border-left-color: #2f8f95; } .notice.bad { border-left-color: #c2382b; } .notice.bad h3 { color: #b3261e; }
.dark .notice.bad h3 { color: #ff8f83; }
.told table { width: 100%; border-collapse: collapse; border: 0 !important; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .2rem 0 .6rem; }
.told { overflow-x: auto; } .told tr { border: 0 !important; } .told th { text-align: left; font-weight: 600; color: var(--body-text-color-subdued); }
.told th, .told td { padding: .2rem .5rem .2rem 0 !important; border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.drawn figure { margin: 0; } .drawn svg { display: block; width: 100%; height: auto; max-height: 300px; }
.drawn figcaption { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .85rem; color: var(--body-text-color-subdued); padding: .2rem; }
.drawn figcaption i { display: inline-block; width: 1.3em; height: 3px; border-radius: 2px; margin-right: .45em; vertical-align: middle; }
.drawn svg text { fill: var(--body-text-color-subdued); font-size: 11px; } .drawn svg polyline, .drawn svg path { fill: none; stroke-width: 2; }
.drawn svg .grid { stroke: var(--border-color-primary); stroke-width: 1; }
.drawn svg .base { stroke: var(--body-text-color-subdued); stroke-width: 1; stroke-dasharray: 4 4; }
.drawn svg .interval { stroke-width: 5; opacity: .28; stroke-linecap: round; }
.drawn svg .held { stroke: #2f8f95; } .drawn svg circle.held { fill: #2f8f95; } .drawn i.held { background: #2f8f95; }
.drawn svg .own { stroke: #c9602f; } .drawn svg circle.own { fill: #c9602f; } .drawn i.own { background: #c9602f; }
.drawn svg .quiet { stroke: #b9ad9d; } .drawn svg polyline.quiet { stroke-width: 1; } .dark .drawn svg .quiet { stroke: #6f665c; }
.drawn i.quiet { background: #b9ad9d; } .dark .drawn i.quiet { background: #6f665c; }
.drawn svg .drift { stroke: #b98a1f; } .drawn svg circle.drift { fill: #b98a1f; } .drawn i.drift { background: #b98a1f; }
.fields .form { display: grid !important; grid-template-columns: repeat(auto-fit, minmax(min(100%, 190px), 1fr)); align-items: stretch;
  background: var(--block-background-fill) !important; }
.fields .form > .block { min-width: 0 !important; } .fields .form > .wide { grid-column: 1 / -1; }
.mono textarea { font: .85rem/1.5 var(--font-mono) !important; white-space: pre; overflow-x: auto; }
.quiet textarea, .quiet input { border: 0 !important; box-shadow: none !important; background: transparent !important; }
.grid-wrap { margin-top: 1.6rem; }
@media (max-width: 760px) {
  .halves { flex-direction: column !important; flex-wrap: nowrap !important; }
  .halves > .column, .halves > div { min-width: 0 !important; width: 100% !important; flex: none !important; }
  .gradio-container { padding: .5rem !important; }
  .masthead p { display: none; }
  .tab-container { gap: 0 !important; } .tab-container button { padding: 0 .55rem !important; }
  .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
}
@media (prefers-reduced-motion: reduce) { .progress .bar i { transition: none; } }
"""


def theme() -> gr.themes.Base:
    """The theme; nothing in it asks the network for anything."""
    return gr.themes.Base(
        primary_hue=_SIENNA,
        secondary_hue=_SIENNA,
        neutral_hue=_GROUND,
        radius_size=sizes.radius_md,
        spacing_size=sizes.spacing_md,
        text_size=sizes.text_md,
        font=_FONTS,
        font_mono=_MONO,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_shadow="none",
        block_title_text_weight="600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        slider_color="*primary_500",
        slider_color_dark="*primary_500",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
    )
