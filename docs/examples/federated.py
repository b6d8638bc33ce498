"""Trains on fifty devices by FedAsync and SLSGD, simulated in this process.

python docs/examples/federated.py
"""

import functools

import keras
from sklearn.datasets import load_digits

from robust_tf import aggregators
from robust_tf import federated

x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype("float32"), y.astype("int32")
parts = federated.by_label(y, num_workers=50, seed=0)
tasks = federated.DeviceTasks(parts, batch_size=10, local_steps=10, seed=0)

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
variables = federated.exchanged_variables(model)
begin = [variable.numpy() for variable in variables]
servers = {
  "FedAsync": federated.FedAsync(
    begin,
    tasks,
    mixing_weight=0.6,
    staleness=federated.polynomial(0.5),
  ),
  "SLSGD": federated.SLSGD(
    begin,
    tasks,
    devices_per_round=10,
    aggregator=functools.partial(aggregators.trimmed_mean, trim=1),
  ),
}
for name, versions in (("FedAsync", 200), ("SLSGD", 20)):
  server = servers[name]
  training = federated.LocalTraining(
    model,
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
    gives_update=server.wants_updates,
  )
  devices = federated.SimulatedDevices(
    training, federated.DeviceData(x, y, num_classes=10), max_staleness=0
  )
  federated.run(server, devices, versions=versions)
  kernel, bias = server.weights
  found = (x @ kernel + bias).argmax(axis=1)
  print(f"{name}: {(found == y).mean():.2f} of the digits right")
