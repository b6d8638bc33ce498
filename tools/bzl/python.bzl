"""How a Python test runs in this workspace."""

def pytest_test(name, srcs = None, data = [], args = [], **kwargs):
    """A py_test whose first source file pytest runs.

    Args:
      name: of the target.
      srcs: the test file, then modules beside it; NAME.py if not given.
      data: files read when the test runs; pytest's configuration is added.
      args: more arguments of pytest.
      **kwargs: of py_test: deps, size, tags, timeout.
    """
    srcs = srcs or [name + ".py"]
    native.py_test(
        name = name,
        srcs = srcs + ["//tools/bzl:pytest_main.py"],
        args = ["$(rootpath %s)" % srcs[0]] + args,
        data = data + ["//:pyproject.toml"],
        main = "//tools/bzl:pytest_main.py",
        **kwargs
    )
