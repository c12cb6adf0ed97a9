#!/usr/bin/python3
"""sbom.py VERSION: what `make sbom` runs after a build, in the root of the sources, on Debian.

Prints a bill of materials (CycloneDX 1.5, JSON) of mq.so: the packages whose libraries the linker asks for, and those whose
headers were compiled in, as the compiler's own lists of them (*.d) have it. The same build gives the same text.
"""

import glob
import json
import os
import re
import subprocess
import sys

# How a package came in; a library that is linked counts as that, whatever its headers do.
LINKED, COMPILED = "linked dynamically", "headers compiled in"


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def names_of(path):
    """dpkg knows a file by the name that it was installed with, which may lead through /lib."""
    real = os.path.realpath(path)
    return {path, real, re.sub("^/usr(?=/lib)", "", real), re.sub("^(?=/lib)", "/usr", path)}


def packages_of(paths):
    """The package of each file that is of one."""
    asked = {name: path for path in paths for name in names_of(path)}
    # It fails where it does not know one of the names.
    found = subprocess.run(["dpkg-query", "-S", *sorted(asked)], capture_output=True, text=True).stdout
    result = {}
    for packages, name in re.findall(r"^([^ ]+): (/.*)$", found, re.M):
        if name in asked:
            result[asked[name]] = packages.split(",")[0].split(":")[0]
    return result


def linked():
    """The files that the linker loads with mq.so: those that it names itself, not what these need."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", "mq.so"))
    places = dict(re.findall(r"^\s*(\S+) => (/\S+)", output("ldd", "./mq.so"), re.M))
    missing = [name for name in needed if name not in places and not name.startswith("ld-")]
    if missing or not needed:
        sys.exit(f"sbom: not found: {', '.join(missing) or 'what mq.so needs'}")
    return {places[name] for name in needed if name in places}


def headers():
    found = set()
    for name in glob.glob("bgworker/**/*.d", recursive=True):
        with open(name) as lines:
            found.update(word for word in lines.read().split() if word.startswith("/") and not word.endswith(":"))
    if not found:
        sys.exit("sbom: no lists of headers: run make first")
    return found


def component(package, how):
    fields = "${source:Package}\t${Version}\t${Architecture}\t${Homepage}\n"
    source, version, architecture, homepage = output("dpkg-query", "-W", "-f", fields, package).split("\n")[0].split("\t")
    reference = f"pkg:deb/debian/{package}@{version}?arch={architecture}"
    result = {
        "type": "library",
        "bom-ref": reference,
        "name": package,
        "version": version,
        "purl": reference,
        "properties": [{"name": "mq:source", "value": source}, {"name": "mq:how", "value": how}],
    }
    if homepage:
        result["externalReferences"] = [{"type": "website", "url": homepage}]
    return result


def main():
    version = sys.argv[1]
    libraries = linked()
    packages = packages_of(libraries)
    lost = libraries - packages.keys()
    if lost:
        sys.exit(f"sbom: of no package: {', '.join(sorted(lost))}")
    how = dict.fromkeys(packages_of(headers()).values(), COMPILED) | dict.fromkeys(packages.values(), LINKED)
    components = [component(package, how[package]) for package in sorted(how)]
    reference = f"pkg:generic/mq@{version}"
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": reference,
                "name": "mq",
                "version": version,
                "licenses": [{"license": {"id": "PostgreSQL"}}],
                "purl": reference,
            }
        },
        "components": components,
        "dependencies": [{"ref": reference, "dependsOn": [c["bom-ref"] for c in components]}],
    }
    print(json.dumps(bill, indent=2))


if __name__ == "__main__":
    main()
