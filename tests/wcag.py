"""What WCAG 2.2 asks of a page, computed in the browser: contrast of text, names of controls, focus that is seen.

Contrast (1.4.3): each text against what is painted behind it, its ancestors' grounds laid over one another; of a
gradient the worst of its colours. What is disabled and what lies over a picture is left out. Names (4.1.2) are those
that the browser itself gives to a screen reader.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

NORMAL, LARGE = 4.5, 3.0  # the least contrast; large is 24 px, or 18.66 px in bold
CONTROLS = {
    "button", "checkbox", "combobox", "link", "menuitem", "option", "radio", "searchbox", "slider", "spinbutton",
    "switch", "tab", "textbox",
}  # fmt: skip

# Every text that is seen and too faint: [contrast, needed, what, where, colour, ground].
_FAINT = """
([normal, large]) => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const known = new Map();
  const rgba = colour => {
    if (!known.has(colour)) {
      context.clearRect(0, 0, 1, 1);
      context.fillStyle = '#000';
      context.fillStyle = colour;
      context.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
      known.set(colour, [r, g, b, a / 255]);
    }
    return known.get(colour);
  };
  const over = (top, ground) => {
    const a = top[3] + ground[3] * (1 - top[3]);
    if (!a) return [0, 0, 0, 0];
    return [0, 1, 2].map(i => (top[i] * top[3] + ground[i] * ground[3] * (1 - top[3])) / a).concat(a);
  };
  const luminance = colour => {
    const [r, g, b] = colour.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const stops = image => image.match(/(rgba?|color|oklch|oklab|hsla?)\\([^()]*\\)|#[0-9a-f]{3,8}/gi) || [];
  // All that may be painted behind an element's text; null if a picture is.
  const grounds = element => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) {
      const style = getComputedStyle(one), image = style.backgroundImage;
      if (image.includes('url(')) return null;
      if (image !== 'none') layers.push(stops(image).map(rgba));
      const plain = rgba(style.backgroundColor);
      if (plain[3]) layers.push([plain]);
      if (plain[3] === 1) break;
    }
    let all = [[255, 255, 255, 1]];
    for (const layer of layers.reverse()) all = all.flatMap(under => layer.map(top => over(top, under)));
    return all;
  };
  const opacity = element => {
    let share = 1;
    for (let one = element; one; one = one.parentElement) share *= getComputedStyle(one).opacity;
    return share;
  };
  const path = element => {
    const names = [];
    for (let one = element; one && names.length < 5; one = one.parentElement)
      names.unshift([one.localName, one.id, ...[...one.classList].slice(0, 2)].filter(Boolean).join('.'));
    return names.join(' > ');
  };
  const seen = (element, box) => {
    if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true}) || !box.width || !box.height)
      return false;
    if (element.closest('[disabled], [aria-disabled=true], [inert], dialog:not([open])')) return false;
    if (getComputedStyle(element).clipPath === 'inset(50%)' || box.width <= 1 || box.height <= 1) return false;
    return true;
  };
  const found = [];
  const look = (element, text, style, fill) => {
    const behind = grounds(element);
    if (!behind) return;
    const colour = rgba(fill || style.color), share = opacity(element);
    const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
    const needed = size >= 24 || size >= 18.66 && bold ? large : normal;
    for (const ground of behind) {
      const painted = over([colour[0], colour[1], colour[2], colour[3] * share], ground);
      const ratio = contrast(painted, ground);
      if (ratio < needed - 0.005)
        found.push([+ratio.toFixed(2), needed, text.trim().slice(0, 60), path(element), fill || style.color,
          'rgb(' + ground.slice(0, 3).map(Math.round) + ')']);
    }
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || !element || element.matches('script, style, template, noscript, option')) continue;
    range.selectNodeContents(node);
    if (!seen(element, range.getBoundingClientRect())) continue;
    const style = getComputedStyle(element);
    look(element, node.data, style, element.closest('svg') ? style.fill : null);
  }
  for (const field of document.querySelectorAll('input, textarea, select')) {
    if (!seen(field, field.getBoundingClientRect()) || /^(range|checkbox|radio|color|file)$/.test(field.type)) continue;
    if (field.value) look(field, field.value, getComputedStyle(field));
    else if (field.placeholder) look(field, field.placeholder, getComputedStyle(field, '::placeholder'));
  }
  for (const element of document.querySelectorAll('body *')) {
    for (const which of ['::before', '::after']) {
      const style = getComputedStyle(element, which);
      if (/^"[^"]*\\p{L}/u.test(style.content) && seen(element, element.getBoundingClientRect()))
        look(element, which + style.content, style);
    }
  }
  const unlike = new Map(found.map(one => [one.join('|'), one]));
  return [...unlike.values()];
}
"""

# `controls()`: what the Tab key should reach, all that is seen and can be used; `key(control)`: what it is known by,
# also when the page draws it anew meanwhile; `looks(control)`: what a focus may change of it and what is around it.
_WALK = """
() => {
  const kinds = 'a[href], button, input, textarea, select, summary, [contenteditable=true], [role=button], [tabindex]';
  const native = 'a, button, input, textarea, select, summary';
  const usable = one => {
    const box = one.getBoundingClientRect();
    return one.checkVisibility({visibilityProperty: true}) && box.width && box.height
      && !one.closest('[disabled], [inert], [aria-hidden=true], dialog:not([open])')
      && (one.tabIndex >= 0 || one.matches(native + ', [role=button]'));
  };
  const key = one => [one.closest('[id]')?.id, one.localName, one.type, one.name, one.value?.slice(0, 40),
    one.dataset.key, one.getAttribute('aria-label'), one.textContent.trim().slice(0, 60)].join(' | ');
  const looks = one => {
    const around = [one.nextElementSibling, one.labels?.[0], ...(one.labels?.[0]?.children || [])].filter(Boolean);
    for (let up = one; up && around.length < 12; up = up.parentElement) around.push(up);
    return around.map(part => {
      const style = getComputedStyle(part);
      return [style.outlineStyle === 'none' ? '' : style.outline, style.boxShadow, style.borderColor,
        style.backgroundColor].join(' ');
    }).join('; ');
  };
  const usables = () => [...document.querySelectorAll(kinds)].filter(usable).map(key);
  const walk = {reached: new Set(), unseen: [], last: null, first: new Set(usables())};
  // One step: what has the focus, after a look at what had it before.
  walk.step = () => {
    const last = walk.last;
    if (last?.one.isConnected && looks(last.one) === last.looks) walk.unseen.push(last.key);
    const one = document.activeElement;
    walk.last = null;
    if (!one || one === document.body) return false;
    walk.last = {one, key: key(one), looks: looks(one)};
    walk.reached.add(walk.last.key);
    return true;
  };
  // What came or went meanwhile was not missed.
  walk.missed = () => usables().filter(one => walk.first.has(one) && !walk.reached.has(one));
  window.__walk = walk;
  document.activeElement?.blur();
}
"""


def hold_still(page: Page) -> None:
    """Have colours and places change at once, so that what is measured is what stays."""
    page.add_style_tag(content="*, ::before, ::after { transition: none !important; animation: none !important }")


def faint(page: Page) -> list[list[Any]]:
    """Texts that are seen and have too little contrast, each as [contrast, needed, text, where, colour, ground]."""
    found: list[list[Any]] = page.evaluate(_FAINT, [NORMAL, LARGE])
    return found


def nameless(page: Page) -> list[str]:
    """Controls that a screen reader has no name for: role and HTML."""
    client = page.context.new_cdp_session(page)
    found = []
    for node in client.send("Accessibility.getFullAXTree")["nodes"]:
        role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
        if node.get("ignored") or role not in CONTROLS or name.strip():
            continue
        made = client.send("DOM.resolveNode", {"backendNodeId": node["backendDOMNodeId"]})["object"]["objectId"]
        html = "function() { return (this.closest?.('[id]')?.id || '') + ': ' + this.outerHTML?.slice(0, 200); }"
        said = client.send(
            "Runtime.callFunctionOn", {"objectId": made, "functionDeclaration": html, "returnByValue": True}
        )
        found.append(f"{role} in {said['result'].get('value')}")
    client.detach()
    return found


def tabbed(page: Page, most: int = 600) -> tuple[int, list[str], list[str]]:
    """A round of the Tab key: how many controls it reached, those it missed, and those whose focus is not seen."""
    page.evaluate(_WALK)
    away = 0
    for _ in range(most):
        page.keyboard.press("Tab")
        away += not page.evaluate("window.__walk.step()")
        if away > 1:  # where the round began, and where it ends, it is on nothing in the page
            break
    reached, missed, unseen = page.evaluate(
        "() => [window.__walk.reached.size, window.__walk.missed(), [...new Set(window.__walk.unseen)]]"
    )
    return reached, missed, unseen
