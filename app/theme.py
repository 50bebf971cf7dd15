"""How the page looks: thin transparent layers over a toned ground, in the system's own fonts, in light and dark.

Colours and sizes that Gradio knows are set here; what it has no setting for is in `styles/`.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils import colors, sizes

from app.texts import say

# Scales from light to dark, as Gradio takes them.
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
# Fonts that every system has: a font of the web would be asked for over the network.
_FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

HEADER = f"""
<div class="masthead">
<svg viewBox="0 0 64 40" width="52" height="32" role="img" aria-label="{say("page.logo")}">
<ellipse cx="22" cy="20" rx="18" ry="15" fill="#b9623a" fill-opacity=".55"/>
<ellipse cx="34" cy="20" rx="18" ry="15" fill="#2f8086" fill-opacity=".45"/>
<ellipse cx="45" cy="20" rx="17" ry="14" fill="#d9a441" fill-opacity=".45"/></svg>
<div><h1>Velatura</h1><p>{say("page.motto")}</p></div></div>
"""

# In this order: where two rules weigh the same the later one holds.
_STYLES = ("frame", "dataset", "train", "charts", "stack", "batch", "library", "viewer")
CSS = "\n".join((Path(__file__).parent / "styles" / f"{name}.css").read_text(encoding="utf-8") for name in _STYLES)


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
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        slider_color="*primary_500",
        slider_color_dark="*primary_500",
        # At least 4.5 : 1 on every ground of the page.
        link_text_color_visited="*primary_600",
        link_text_color_dark="*primary_300",
        link_text_color_active_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        link_text_color_visited_dark="*primary_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_400",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_background_fill="*neutral_50",
        input_background_fill_dark="*neutral_800",
    )
