"""What lets Bazel 4 build this workspace without a network.

Bazel 4 appends declarations of rules_cc, rules_java and its coverage tools, as
archives to download, to every WORKSPACE, and finds the toolchains of a py_test
through them. A repository that is declared earlier under the same name wins.
There is no C++ or Java here, so repositories that hold just the names that
Bazel loads from them will do.
"""

_CC_RULES = [
    "cc_binary",
    "cc_import",
    "cc_library",
    "cc_proto_library",
    "cc_test",
    "cc_toolchain",
    "cc_toolchain_suite",
]

_JAVA_RULES = [
    "java_binary",
    "java_import",
    "java_library",
    "java_package_configuration",
    "java_plugin",
    "java_proto_library",
    "java_runtime",
    "java_test",
    "java_toolchain",
]

def _native_rules_impl(ctx):
    lines = ["%s = native.%s\n" % (rule, rule) for rule in ctx.attr.rules]
    ctx.file("WORKSPACE", "workspace(name = \"%s\")\n" % ctx.name)
    ctx.file(ctx.attr.package + "/BUILD", "")
    ctx.file(ctx.attr.package + "/defs.bzl", "".join(lines))

_native_rules = repository_rule(
    implementation = _native_rules_impl,
    attrs = {
        "package": attr.string(mandatory = True),
        "rules": attr.string_list(mandatory = True),
    },
    doc = "A repository whose PACKAGE/defs.bzl passes native rules on.",
)

_COVERAGE_BUILD = """\
package(default_visibility = ["//visibility:public"])

filegroup(name = "coverage_report_generator")

filegroup(name = "lcov_merger")
"""

def _no_coverage_impl(ctx):
    ctx.file("WORKSPACE", "workspace(name = \"%s\")\n" % ctx.name)
    ctx.file("BUILD", _COVERAGE_BUILD)

_no_coverage = repository_rule(
    implementation = _no_coverage_impl,
    doc = "Empty targets under the names of Bazel's coverage tools.",
)

def offline_bazel_deps():
    """Declares local repositories in place of those Bazel 4 would download."""
    _native_rules(name = "rules_cc", package = "cc", rules = _CC_RULES)
    _native_rules(name = "rules_java", package = "java", rules = _JAVA_RULES)
    _no_coverage(name = "remote_coverage_tools")
