"""Graph → graph: each pass takes a model and returns a model; the argument is left as it was."""

from onward.passes.cast import cast_floats
from onward.passes.expand import expand_onward
from onward.passes.fix_shapes import fix_inputs, fix_shapes
from onward.passes.float32 import half_types, in_float32
from onward.passes.fold_normalization import fold_normalization
from onward.passes.fold_shapes import fold_shapes, unpack_sequences
from onward.passes.functions import with_functions
from onward.passes.half_precision import to_half
from onward.passes.lora import Adapter, LoRA, adapters_of, add_lora, merge_lora, open_adapters
from onward.passes.open_batch import open_batch
from onward.passes.preparation import detach_preparation, detach_table, prepend_preparation
from onward.passes.quantization import in_floats, in_integers
from onward.passes.quantize_dynamic import quantize_dynamic
from onward.passes.quantize_static import quantize_static, tensors_to_calibrate
from onward.passes.quantize_weights import quantize_weights
from onward.passes.replace_head import Head, add_head, find_head, new_head, replace_head
from onward.passes.samples_first import axis_of_all, samples_first
from onward.passes.to_inference import to_inference
from onward.passes.to_training import TrainingForm, to_training

__all__ = [
    "Adapter",
    "Head",
    "LoRA",
    "TrainingForm",
    "adapters_of",
    "add_head",
    "add_lora",
    "axis_of_all",
    "cast_floats",
    "detach_preparation",
    "detach_table",
    "expand_onward",
    "find_head",
    "fix_inputs",
    "fix_shapes",
    "fold_normalization",
    "fold_shapes",
    "half_types",
    "in_float32",
    "in_floats",
    "in_integers",
    "merge_lora",
    "new_head",
    "open_adapters",
    "open_batch",
    "prepend_preparation",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weights",
    "replace_head",
    "samples_first",
    "tensors_to_calibrate",
    "to_half",
    "to_inference",
    "to_training",
    "unpack_sequences",
    "with_functions",
]
