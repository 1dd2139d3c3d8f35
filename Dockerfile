# syntax=docker/dockerfile:1
#
#     docker build -t evosaga .
#     docker buildx build --platform linux/amd64,linux/arm64 -t registry.example/evosaga:0.1.0 --push .
#
# The image holds evosaga without the embedded Postgres and Valkey: a deployment gives it servers.
# It runs as any user id, with a read-only root, and needs no volume. docs/how-to/docker.md

FROM python:3.13-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/evosaga && python -m venv /opt/build

# Packages before source, so that a change of ours does not install the rest again. Both come out
# of the one lock file, by hash: what evosaga needs to run, and what makes a wheel of it.
COPY pyproject.toml requirements.lock ./
COPY .ci/subset.py .ci/
RUN python .ci/subset.py runtime > runtime.lock \
 && python .ci/subset.py build > build.lock \
 && /opt/evosaga/bin/pip install --require-hashes --only-binary :all: -r runtime.lock \
 && /opt/build/bin/pip install --require-hashes --only-binary :all: -r build.lock

# The bytecode is made here, since a read-only root has no place for it later.
COPY . .
RUN /opt/build/bin/hatchling build --target wheel --directory /dist \
 && /opt/evosaga/bin/pip install --no-deps --no-index /dist/*.whl \
 && /opt/evosaga/bin/pip check \
 && /opt/evosaga/bin/python -m pip uninstall --yes pip \
 && python -m compileall -q -j 0 /opt/evosaga/lib


FROM python:3.13-slim-trixie
COPY --from=build /opt/evosaga /opt/evosaga
ENV PATH=/opt/evosaga/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Inside a container every address is its own; which of them leads outside is for `ports` to say.
ENV EVOSAGA_HOST=0.0.0.0 EVOSAGA_PORT=8080 EVOSAGA_LOG_FORMAT=json
EXPOSE 8080
# A number, so that Kubernetes sees that it is not root; any other number will do.
USER 10001:10001
WORKDIR /

# For `serve` and `api`: does the process answer? It asks no server behind it, so an outage of
# Postgres restarts nothing (/readyz tells that). A `worker` has no port: run it with
# --no-healthcheck; it ends by itself when a part of it breaks.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['EVOSAGA_PORT']}/healthz\", timeout=4)"]

ENTRYPOINT ["evosaga"]
CMD ["serve"]
