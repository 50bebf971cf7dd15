"""LoRA files, both ways: `.safetensors` <-> updates by module path, and the header that makes them known elsewhere.

`locating` finds the file in a folder of PEFT's; `header` is what a file says before a tensor is read, `foreign` what is no such file, `content` all
of it, read once; `header_meaning` is what it says of how its numbers are meant, with `patterns` and `rs_lora`; `names` tells scheme and family and knows
every layer's names;
`reading` gives updates, matched to a base or by the file's own names; `renaming` gives them names again in any scheme; `writing` writes; `inspecting`
says all of it, and `where_it_loads` where a file loads. What others use is named here.
"""

from __future__ import annotations

from trainer.deltas import Delta as Delta
from trainer.deltas import Update as Update
from trainer.lora_file.content import Content as Content
from trainer.lora_file.content import content as content
from trainer.lora_file.header import MAX_HEADER_BYTES as MAX_HEADER_BYTES
from trainer.lora_file.header import MAX_TENSORS as MAX_TENSORS
from trainer.lora_file.header import RECIPE_KEY as RECIPE_KEY
from trainer.lora_file.header import Header as Header
from trainer.lora_file.header import read_header as read_header
from trainer.lora_file.header import recipe_of as recipe_of
from trainer.lora_file.header_meaning import MEANING as MEANING
from trainer.lora_file.inspecting import LoraInfo as LoraInfo
from trainer.lora_file.inspecting import describe as describe
from trainer.lora_file.inspecting import inspect as inspect
from trainer.lora_file.inspecting import library as library
from trainer.lora_file.locating import config_beside as config_beside
from trainer.lora_file.locating import is_there as is_there
from trainer.lora_file.locating import located as located
from trainer.lora_file.locating import name_of as name_of
from trainer.lora_file.locating import stamp as stamp
from trainer.lora_file.reading import embeddings as embeddings
from trainer.lora_file.reading import is_same_word as is_same_word
from trainer.lora_file.reading import matched as matched
from trainer.lora_file.reading import read as read
from trainer.lora_file.reading import words as words
from trainer.lora_file.writing import save as save
