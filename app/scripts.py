"""The page's scripts, each with the texts of `texts.toml` that it asks for.

In a script `phrase('vote.gone')` is what `say("vote.gone")` is here, and `phraseNum` is `say_num`. The texts stand in
front of it, so that it needs nothing else to be on the page first.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from app.texts import TEXTS

_ASKED = re.compile(r"\bphrase(Num)?\('([\w.]+)'")
_PHRASE = """const phrase = (key, values = {}) => texts[key].replace(/{(\\w+)}/g, (_, name) => values[name]);
const phraseNum = (key, num, values = {}) => phrase(`${key}.${num === 1 ? 'one' : 'many'}`, {num, ...values});
"""

# Gradio 6.31's page gives `undefined` where no answer came; a script of ours is to notice.
ANSWERED = """server = new Proxy(server, {get: (all, name) => async (...given) => {
  const answer = await all[name](...given);
  if (answer === undefined) throw new Error('');
  return answer;
}});
"""


def read(*names: str) -> str:
    """These files beside this one as one script, behind their texts."""
    code = "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)
    texts = {key: TEXTS[key] for key in asked(code)}
    if "server." in code or "server[" in code:
        code = ANSWERED + code
    return f"const texts = {json.dumps(texts)};\n{_PHRASE}{code}" if texts else code


def asked(code: str) -> list[str]:
    """The names of the texts that a script asks for."""
    return [
        key
        for is_pair, name in _ASKED.findall(code)
        for key in ((f"{name}.one", f"{name}.many") if is_pair else (name,))
    ]
