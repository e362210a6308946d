#!/usr/bin/env bash
# Build the CPU image from the files that git tracks, and check that it answers. Usage: docker/build.sh [TAG]
set -euo pipefail
tag=${1:-robobench}
cd "$(dirname "$0")/.."
git archive --format=tar HEAD | docker build --build-arg PIP_EXTRA_INDEX_URL --file docker/Dockerfile --tag "$tag" -
docker run --rm "$tag" --version
docker run --rm "$tag" env
