# syntax=docker/dockerfile:1

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

COPY . .
RUN /opt/build/bin/hatchling build --target wheel --directory /dist \
 && /opt/evosaga/bin/pip install --no-deps --no-index /dist/*.whl \
 && /opt/evosaga/bin/pip check


FROM python:3.13-slim-trixie
RUN useradd --system --uid 10001 --home-dir /var/lib/evosaga --create-home evosaga
COPY --from=build /opt/evosaga /opt/evosaga
ENV PATH=/opt/evosaga/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# Inside a container every address is its own; which of them leads outside is for `ports` to say.
ENV EVOSAGA_HOST=0.0.0.0 EVOSAGA_PORT=8080
EXPOSE 8080
USER evosaga
WORKDIR /var/lib/evosaga

# A worker opens no port to be asked at; what it depends on can be asked instead (the compose file
# asks /readyz). Docker knows two answers, healthy and not, so every exit code but 0 becomes 1.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD evosaga doctor || exit 1

ENTRYPOINT ["evosaga"]
CMD ["serve"]
