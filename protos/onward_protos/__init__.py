"""Protocol definitions and their generated code, and the tensor codec that both ends of the wire share.

The `.proto` files stand beside the code that `scripts/protos.sh` generates from them.
"""

from __future__ import annotations
