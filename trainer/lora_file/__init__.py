"""LoRA files, both ways: `.safetensors` <-> updates by module path, and the header that makes them known elsewhere.

Reading: `locating` finds the file, `header` reads what it says before a tensor is read, and `content` reads all of it,
once; `not_safetensors` and `not_lora` explain what is no LoRA. `header_meaning`, with `patterns` and `rs_lora`, is
what the header says of how the numbers are meant. `names` tells scheme and family, and has every layer's names.
`reading` gives the updates (`weight_shapes`, `fusing`) and `new_words` the words that a file brings.

Writing: `tool_names` has the names in every scheme, `scheme_tensors` the tensors, `renaming` uses both, `writing`
writes.

Describing: `inspecting` gives everything that is known of a file; `where_it_loads` where it loads, by `tool_rules` and
`tables`. What others use is named here.
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
from trainer.lora_file.inspecting import TRIGGER_KEY as TRIGGER_KEY
from trainer.lora_file.inspecting import LoraInfo as LoraInfo
from trainer.lora_file.inspecting import describe as describe
from trainer.lora_file.inspecting import inspect as inspect
from trainer.lora_file.inspecting import joined_triggers as joined_triggers
from trainer.lora_file.inspecting import library as library
from trainer.lora_file.locating import config_beside as config_beside
from trainer.lora_file.locating import is_there as is_there
from trainer.lora_file.locating import located as located
from trainer.lora_file.locating import name_of as name_of
from trainer.lora_file.locating import stamp as stamp
from trainer.lora_file.new_words import embeddings as embeddings
from trainer.lora_file.new_words import is_same_word as is_same_word
from trainer.lora_file.new_words import words as words
from trainer.lora_file.reading import matched as matched
from trainer.lora_file.reading import read as read
from trainer.lora_file.writing import save as save
