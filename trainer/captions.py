"""stand-in"""
from pathlib import Path
def read_caption(p: Path) -> str:
    t = p.with_suffix(".txt")
    return t.read_text().strip() if t.exists() else ""
