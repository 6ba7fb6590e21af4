# syntax=docker/dockerfile:1
#
#   docker build -t fairlead .
#   docker buildx build --platform linux/amd64,linux/arm64 -t REGISTRY/fairlead:TAG --push .

# Go cross-compiles: this stage always runs on the machine that builds.
FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
ARG TARGETOS TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags '-s -w' -o /fairlead ./cmd/fairlead

# Debian 12 has iptables 1.8.9, with which the tests run. The package has both userlands; which one a node uses is found
# out at the start.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends iptables \
    && rm -rf /var/lib/apt/lists/*
# Both userlands must be there for both families.
RUN for c in iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy; do \
        $c --version && $c-save --version && $c-restore --version || exit 1; \
    done
COPY --from=build /fairlead /usr/local/bin/fairlead
COPY LICENSE /usr/share/doc/fairlead/LICENSE
LABEL org.opencontainers.image.title="fairlead" \
      org.opencontainers.image.description="Guides connections to Kubernetes Services to their endpoints, in place of kube-proxy" \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["/usr/local/bin/fairlead"]
