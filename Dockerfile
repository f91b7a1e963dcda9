# The image of Taffrail: one static binary, and nothing else.
#
#   docker build --tag taffrail .
#   docker buildx build --platform linux/amd64,linux/arm64 --tag taffrail .
#
# A binary that is there already goes in place of the stage that builds one, in a directory with an
# empty `data` beside it:
#   buildah build --build-context build=DIRECTORY --tag taffrail .

ARG RUST_VERSION=1.95

FROM rust:${RUST_VERSION}-bookworm AS build
WORKDIR /src
# What the profile that guides the compiler is made with; nothing of it is in the image.
# hadolint ignore=DL3008
RUN rustup component add llvm-tools \
    && apt-get update \
    && apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/*
COPY Cargo.toml Cargo.lock ./
COPY .cargo ./.cargo
COPY benches ./benches
COPY migrations ./migrations
COPY scripts ./scripts
COPY src ./src
COPY tests ./tests
# Without a C library to look for at run time, and so without a base image.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN scripts/build-release.sh /taffrail \
    && mkdir /data

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Taffrail" \
    org.opencontainers.image.description="Prometheus-native metering sidecar and balance exporter for AI-provider API traffic" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build --chmod=0555 /taffrail /taffrail
# Journal and embedded store, if nothing is mounted there.
COPY --from=build --chown=65532:65532 /data /var/lib/taffrail
WORKDIR /var/lib/taffrail
# Metrics and probes; the proxy; the injector's webhook.
EXPOSE 10480 4800 10443
USER 65532:65532
# One heap for all threads: by default each keeps one of its own, and with it what it once needed.
ENV MALLOC_ARENA_MAX=1
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/taffrail", "healthcheck"]
ENTRYPOINT ["/taffrail"]
CMD ["run"]
