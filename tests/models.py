"""Small real models, built and saved on the fly."""

import numpy as np

from tests.tensorflow_setup import tf

FEATURES = 4
CLASSES = 2


class Mlp(tf.Module):
  """Two layers; the first is a function of its own, called twice a step."""

  def __init__(self):
    super().__init__(name="mlp")
    rng = np.random.RandomState(0)
    self.w = tf.Variable(rng.randn(FEATURES, 8).astype("f"), name="w")
    self.v = tf.Variable(rng.randn(8, CLASSES).astype("f"), name="v")
    self.step = tf.Variable(0, dtype=tf.int64, name="step")

  @tf.function
  def layer(self, x):
    return tf.nn.relu(x @ self.w)

  @tf.function(
    input_signature=[
      tf.TensorSpec([None, FEATURES], name="x"),
      tf.TensorSpec([None, CLASSES], name="y"),
    ]
  )
  def train_step(self, x, y):
    with tf.GradientTape() as tape:
      error = self.layer(x) @ self.v + tf.reduce_sum(self.layer(x / 2.0)) - y
      loss = tf.reduce_mean(error**2)
    gradients = tape.gradient(loss, [self.w, self.v])
    self.w.assign_sub(0.001 * gradients[0])
    self.v.assign_sub(0.001 * gradients[1])
    self.step.assign_add(1)
    return {"loss": loss}

  @tf.function(input_signature=[tf.TensorSpec([None, FEATURES], name="x")])
  def predict(self, x):
    return {"scores": self.layer(x) @ self.v}


def save_mlp(path) -> str:
  """Saves `Mlp` with the signatures "train" and "serving_default"."""
  model = Mlp()
  signatures = {"train": model.train_step, "serving_default": model.predict}
  tf.saved_model.save(model, str(path), signatures=signatures)
  return str(path)


def mlp_batch(seed: int) -> dict[str, np.ndarray]:
  """Returns one batch for `Mlp.train_step`."""
  rng = np.random.RandomState(seed)
  return {
    "x": rng.randn(5, FEATURES).astype("f"),
    "y": rng.randn(5, CLASSES).astype("f"),
  }


class Cnn(tf.Module):
  """A convolution without a bias, and one with."""

  def __init__(self):
    super().__init__(name="cnn")
    rng = np.random.RandomState(0)
    self.w = tf.Variable(0.1 * rng.randn(3, 3, 3, 8).astype("f"), name="w")
    self.v = tf.Variable(0.1 * rng.randn(3, 3, 8, 8).astype("f"), name="v")
    self.b = tf.Variable(tf.zeros([8]), name="b")

  @tf.function(input_signature=[tf.TensorSpec([None, 16, 16, 3], name="x")])
  def train_step(self, x):
    with tf.GradientTape() as tape:
      y = tf.nn.relu(tf.nn.conv2d(x, self.w, 1, "SAME"))
      y = tf.nn.bias_add(tf.nn.conv2d(y, self.v, 1, "SAME"), self.b)
      loss = tf.reduce_mean(tf.nn.relu(y) ** 2)
    variables = [self.w, self.v, self.b]
    gradients = tape.gradient(loss, variables)
    for x, gradient in zip(variables, gradients, strict=True):
      x.assign_sub(0.001 * gradient)
    return {"loss": loss}


def save_cnn(path) -> str:
  """Saves `Cnn` with the signature "train"."""
  model = Cnn()
  tf.saved_model.save(model, str(path), signatures={"train": model.train_step})
  return str(path)


class Loop(tf.Module):
  """A While whose body reads a variable, and an If beside it."""

  def __init__(self):
    super().__init__(name="loop")
    self.a = tf.Variable([[0.5, 0.1], [0.2, 0.3]], name="a")
    self.count = tf.Variable(0, name="count")

  @tf.function(input_signature=[tf.TensorSpec([2, 2], name="x")])
  def run(self, x):
    for _ in tf.range(3):
      x = self.double(x) @ self.a
      self.count.assign_add(1)
    if tf.reduce_sum(x) > 0.0:
      y = x + self.a
    else:
      y = x - self.a
    return {"y": y}

  @tf.function
  def double(self, x):
    return x * 2.0


def save_loop(path) -> str:
  """Saves `Loop` with one signature."""
  model = Loop()
  tf.saved_model.save(model, str(path), signatures={"run": model.run})
  return str(path)


class Compiled(tf.Module):
  """Calls that XLA compiles: one reads a variable, one in a loop changes it."""

  def __init__(self):
    super().__init__(name="compiled")
    self.a = tf.Variable([[0.5, 0.1], [0.2, 0.3]], name="a")
    self.b = tf.Variable([[0.7, 0.2], [0.1, 0.4]], name="b")

  @tf.function(jit_compile=True)
  def layer(self, x):
    return tf.nn.relu(x @ self.a)

  @tf.function(jit_compile=True)
  def update(self, x):
    self.b.assign_add(x)
    return x @ self.b

  @tf.function(input_signature=[tf.TensorSpec([2, 2], name="x")])
  def run(self, x):
    for _ in tf.range(2):
      x = self.update(x)
    return {"y": self.layer(x)}

  @tf.function(
    input_signature=[tf.TensorSpec([2, 2], name="x")], jit_compile=True
  )
  def predict(self, x):
    return {"y": tf.nn.relu(x @ self.a)}


def save_compiled(path) -> str:
  """Saves `Compiled` with the signatures "run" and "predict"."""
  model = Compiled()
  signatures = {"run": model.run, "predict": model.predict}
  tf.saved_model.save(model, str(path), signatures=signatures)
  return str(path)


class TwoLoops(tf.Module):
  """One function with a loop, called twice."""

  @tf.function
  def power(self, x):
    y = x
    for _ in tf.range(2):
      y = y @ x
    return y

  @tf.function(input_signature=[tf.TensorSpec([2, 2], name="x")])
  def run(self, x):
    return {"y": self.power(x) + self.power(2.0 * x)}


def save_two_loops(path) -> str:
  """Saves `TwoLoops` with one signature."""
  model = TwoLoops()
  tf.saved_model.save(model, str(path), signatures={"run": model.run})
  return str(path)


class Ordered(tf.Module):
  """Calls whose only tie is the order in which they touch a variable."""

  def __init__(self):
    super().__init__(name="ordered")
    self.a = tf.Variable(1.0, name="a")

  @tf.function
  def add(self, x):
    self.a.assign_add(x)

  @tf.function
  def double(self):
    self.a.assign(self.a * 2.0)

  @tf.function
  def add_and_double(self, x):
    self.add(x)
    self.double()

  @tf.function(input_signature=[tf.TensorSpec([], name="x")])
  def run(self, x):
    self.add_and_double(x)
    before = self.a.read_value()
    self.add(x)
    self.double()
    self.add_and_double(x)
    return {"before": before, "after": self.a.read_value()}


def save_ordered(path) -> str:
  """Saves `Ordered` with one signature."""
  model = Ordered()
  tf.saved_model.save(model, str(path), signatures={"run": model.run})
  return str(path)


class Vocabulary(tf.Module):
  """Looks words up in a table that is filled from an asset file."""

  def __init__(self, file_name):
    super().__init__(name="vocabulary")
    self.asset = tf.saved_model.Asset(file_name)
    self.table = tf.lookup.StaticHashTable(
      tf.lookup.TextFileInitializer(
        self.asset,
        tf.string,
        tf.lookup.TextFileIndex.WHOLE_LINE,
        tf.int64,
        tf.lookup.TextFileIndex.LINE_NUMBER,
      ),
      default_value=-1,
    )
    self.scale = tf.Variable(10, dtype=tf.int64, name="scale")

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
  def lookup(self, words):
    return {"ids": self.table.lookup(words) * self.scale}


def save_vocabulary(path, asset_path) -> str:
  """Saves `Vocabulary` of "a", "b" and "c"."""
  asset_path.write_text("a\nb\nc\n")
  model = Vocabulary(str(asset_path))
  tf.saved_model.save(model, str(path), signatures={"lookup": model.lookup})
  return str(path)


def save_v1(path, use_resource: bool, device: str = "") -> str:
  """Saves a TF1-style train step: its ops are in the main graph.

  All are on the device, which need not be here.
  """
  v1 = tf.compat.v1
  config = v1.ConfigProto(allow_soft_placement=True)
  graph = tf.Graph()
  with (
    graph.as_default(),
    graph.device(device),
    v1.Session(graph=graph, config=config) as session,
  ):
    x = v1.placeholder(tf.float32, [None, FEATURES], name="x")
    y = v1.placeholder(tf.float32, [None, CLASSES], name="y")
    w = v1.get_variable(
      "w",
      initializer=np.ones([FEATURES, CLASSES], "f"),
      use_resource=use_resource,
    )
    loss = tf.reduce_mean((x @ w - y) ** 2, name="loss")
    train = v1.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
    with tf.control_dependencies([train]):
      loss = tf.identity(loss, name="loss_after")
    session.run(v1.global_variables_initializer())
    builder = v1.saved_model.Builder(str(path))
    signature = v1.saved_model.predict_signature_def(
      {"x": x, "y": y}, {"loss": loss}
    )
    builder.add_meta_graph_and_variables(
      session, ["serve"], signature_def_map={"train": signature}
    )
    builder.save()
  return str(path)


def save_v1_two_graphs(path, as_text=False) -> str:
  """Saves one model for tags "serve" (x + w) and "train" (x * w), w = 2."""
  v1 = tf.compat.v1
  builder = v1.saved_model.Builder(str(path))
  for tag, combine in (("train", tf.multiply), ("serve", tf.add)):
    with tf.Graph().as_default(), v1.Session() as session:
      x = v1.placeholder(tf.float32, [], name="x")
      w = v1.get_variable("w", initializer=2.0, use_resource=True)
      signature = v1.saved_model.predict_signature_def(
        {"x": x}, {"y": combine(x, w)}
      )
      session.run(v1.global_variables_initializer())
      signatures = {"combine": signature}
      if tag == "train":
        builder.add_meta_graph_and_variables(session, [tag], signatures)
      else:
        builder.add_meta_graph([tag], signatures)
  builder.save(as_text=as_text)
  return str(path)


def save_v1_sparse(path) -> str:
  """Saves a model that takes and returns a sparse tensor."""
  v1 = tf.compat.v1
  with tf.Graph().as_default(), v1.Session() as session:
    x = v1.sparse_placeholder(tf.float32, [2, 2], name="x")
    y = tf.SparseTensor(x.indices, x.values * 2.0, x.dense_shape)
    info = v1.saved_model.build_tensor_info
    signature = v1.saved_model.build_signature_def(
      {"x": info(x)}, {"y": info(y)}
    )
    builder = v1.saved_model.Builder(str(path))
    builder.add_meta_graph_and_variables(
      session, ["serve"], {"double": signature}
    )
    builder.save()
  return str(path)


def save_v1_examples(path) -> str:
  """Saves y = x / 2 + 2 in the ways of TensorFlow Serving.

  Signature "examples" takes serialized examples, "parsed" the output of the op
  that parses them, "defaulted" a placeholder that has a default.
  """
  v1 = tf.compat.v1
  with tf.Graph().as_default(), v1.Session() as session:
    half = v1.get_variable("half", initializer=0.5)
    examples = v1.placeholder(tf.string, name="examples")
    spec = tf.io.FixedLenFeature([1], tf.float32)
    parsed = v1.parse_example(examples, {"x": spec, "z": spec})
    ones = tf.ones([2, 1], name="ones")
    defaulted = v1.placeholder_with_default(ones, [None, 1], name="defaulted")
    describe = v1.saved_model.predict_signature_def
    signatures = {
      "examples": describe({"in": examples}, {"y": parsed["x"] * half + 2.0}),
      "parsed": describe({"in": parsed["z"]}, {"y": parsed["z"] * half + 2.0}),
      "defaulted": describe({"in": defaulted}, {"y": defaulted * half + 2.0}),
    }
    session.run(v1.global_variables_initializer())
    builder = v1.saved_model.Builder(str(path))
    builder.add_meta_graph_and_variables(session, ["serve"], signatures)
    builder.save()
  return str(path)


def lowered_loop():
  """Returns a GraphDef whose loop is a cycle of Enter, Merge, NextIteration."""
  v1 = tf.compat.v1
  with tf.Graph().as_default() as graph:
    v1.disable_control_flow_v2()
    x = v1.placeholder(tf.float32, [], name="x")
    y = v1.while_loop(lambda a: a < 100.0, lambda a: a * 2.0, [x])
    tf.identity(y, name="y")
    v1.enable_control_flow_v2()
  return graph.as_graph_def()


def read_variables(session) -> dict[str, np.ndarray]:
  """Returns the values of a session's variables, by their nodes' names."""
  values = {}
  for operation in session.graph.get_operations():
    if operation.type == "VarHandleOp":
      with session.graph.as_default():
        try:
          values[operation.name] = session.run(
            tf.raw_ops.ReadVariableOp(
              resource=operation.outputs[0],
              dtype=operation.get_attr("dtype"),
            )
          )
        except tf.errors.FailedPreconditionError:
          continue  # no step and no restore has touched it
  return values


def run_v1(path, signature, batches, num_devices=1):
  """Runs a signature as TensorFlow Serving does, once per batch."""
  config = tf.compat.v1.ConfigProto(device_count={"CPU": num_devices})
  with (
    tf.Graph().as_default() as graph,
    tf.compat.v1.Session(graph=graph, config=config) as session,
  ):
    meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], path)
    definition = meta_graph.signature_def[signature]
    fetches = [definition.outputs[x].name for x in sorted(definition.outputs)]
    return [
      session.run(
        fetches,
        {definition.inputs[key].name: value for key, value in batch.items()},
      )
      for batch in batches
    ]


_STATE = {"VarHandleOp", "VariableV2", "HashTableV2", "MutableHashTableV2"}


def spread(item, devices) -> dict[str, str]:
  """Returns a plan that uses every device and keeps state with its users.

  Each op that takes a variable or table sits with it; of all others each
  neighbour in the graph's order is on another device.
  """
  nodes = {node.name: node for node in item.graph_def.node}
  leader = {name: name for name in item.op_names}

  def find(name):
    while leader[name] != name:
      name = leader[name]
    return name

  for name in item.op_names:
    tied = [
      ref.partition(":")[0]
      for ref in nodes[name].input
      if not ref.startswith("^") and nodes[ref.partition(":")[0]].op in _STATE
    ]
    if "_class" in nodes[name].attr:
      classes = nodes[name].attr["_class"].list.s
      tied += [x.decode().removeprefix("loc:@") for x in classes]
    for other in tied:
      if other in leader:
        leader[find(name)] = find(other)
  device = {}
  return {
    name: device.setdefault(find(name), devices[len(device) % len(devices)])
    for name in item.op_names
  }
