"""What an operator asks of the compiler: requests, plain data that its `lower` returns.

A request names the values that it takes and gives, and what is to be computed from them: geometry, axes,
attributes with their defaults filled in. It does not say how. Rules in `onward.compile.rules` are registered
for a class of requests; passes over layouts, memory traffic and element types read requests, never the names
of operators.

In every class, results come first, then operands. All extents are known: requests are made of a graph whose
shapes are fixed. Each module holds a family and names its requests in `__all__`; callers import them from
here.
"""

from onward.graph.requests.base import *
from onward.graph.requests.calls import *
from onward.graph.requests.elements import *
from onward.graph.requests.loops import *
from onward.graph.requests.moves import *
from onward.graph.requests.products import *
from onward.graph.requests.recurrence import *
from onward.graph.requests.reductions import *
from onward.graph.requests.windows import *
