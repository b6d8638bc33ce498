"""Binary heaps in arrays: of numbers, and of times with numbers."""

from baechi_tf.compiled import compiled_inner


@compiled_inner
def push(heap, size, key):
  """Adds a key to the `size` smallest-first keys of `heap`."""
  i = size
  while i > 0:
    parent = (i - 1) >> 1
    if heap[parent] <= key:
      break
    heap[i] = heap[parent]
    i = parent
  heap[i] = key


@compiled_inner
def pop(heap, size):
  """Takes the smallest of `size` keys out of `heap`."""
  size -= 1
  key = heap[size]
  i = 0
  while True:
    child = 2 * i + 1
    if child >= size:
      break
    if child + 1 < size and heap[child + 1] < heap[child]:
      child += 1
    if key <= heap[child]:
      break
    heap[i] = heap[child]
    i = child
  heap[i] = key


@compiled_inner
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


@compiled_inner
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
