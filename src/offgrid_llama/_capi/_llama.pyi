# The raw layer is typed by llama.cdef.h, which cffi checks when it is compiled and at each call. Restating some 260 C
# signatures in Python's types would check nothing more, so `lib` is Any here, and every noun file types its own face.
from typing import Any

ffi: Any
lib: Any
