"""The rules that keep Python safe beside C: handles, callbacks, checked return codes; the library's start and devices."""
