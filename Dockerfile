# syntax=docker/dockerfile:1
#
#   make image
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=TAG -t REGISTRY/fairlead:TAG --push .

# This stage always runs on the build machine's architecture: Go cross-compiles, and packages of another architecture are only
# unpacked. Debian 12 has iptables 1.8.9, the version of the tests.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY hack/image hack/image
COPY LICENSE ./
ARG TARGETOS=linux TARGETARCH=amd64 VERSION=
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.release=$VERSION" -o /fairlead ./cmd/fairlead
# Docker and Debian use the same names for amd64, arm64 and s390x.
RUN hack/image/rootfs /rootfs /fairlead "$TARGETARCH"

# No shell, no package manager: only both userlands of iptables (Fairlead detects the node's at startup), kmod, and the binary,
# also under the name that kube-proxy's DaemonSet runs.
FROM scratch
COPY --from=build /rootfs /
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin
LABEL org.opencontainers.image.title="fairlead" \
      org.opencontainers.image.description="Replaces kube-proxy and connects clients of Kubernetes Services to ready endpoints" \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["/usr/local/bin/fairlead"]
