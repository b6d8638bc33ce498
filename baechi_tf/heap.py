"""Binary heaps in arrays: of numbers, and of times with numbers."""

from baechi_tf.compiled import inlined


@inlined
def push(heap, base, size, key):
  """Adds a key to the `size` smallest-first keys of `heap` from `base` on."""
  i = size
  while i > 0:
    parent = (i - 1) >> 1
    if heap[base + parent] <= key:
      break
    heap[base + i] = heap[base + parent]
    i = parent
  heap[base + i] = key


@inlined
def pop(heap, base, size):
  """Takes the smallest of `size` keys out of `heap` from `base` on."""
  size -= 1
  key = heap[base + size]
  i = 0
  while True:
    child = 2 * i + 1
    if child >= size:
      break
    if child + 1 < size and heap[base + child + 1] < heap[base + child]:
      child += 1
    if key <= heap[base + child]:
      break
    heap[base + i] = heap[base + child]
    i = child
  heap[base + i] = key


@inlined
def push_event(times, codes, size, time, code):
  """Adds an event to the `size` events, the earliest (then lowest) first."""
  i = size
  while i > 0:
    parent = (i - 1) >> 1
    before = times[parent]
    if before < time or (before == time and codes[parent] <= code):
      break
    times[i] = before
    codes[i] = codes[parent]
    i = parent
  times[i] = time
  codes[i] = code


@inlined
def pop_event(times, codes, size):
  """Takes the first of `size` events."""
  size -= 1
  time, code = times[size], codes[size]
  i = 0
  while True:
    child = 2 * i + 1
    if child >= size:
      break
    if child + 1 < size:
      a, b = times[child], times[child + 1]
      if b < a or (b == a and codes[child + 1] < codes[child]):
        child += 1
    if time < times[child] or (time == times[child] and code <= codes[child]):
      break
    times[i] = times[child]
    codes[i] = codes[child]
    i = child
  times[i] = time
  codes[i] = code
