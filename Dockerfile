# syntax=docker/dockerfile:1
#
#   make image
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=TAG -t REGISTRY/fairlead:TAG --push .

# Go cross-compiles, and the packages of another architecture are only unpacked: this stage always runs on the machine that
# builds. Debian 12 has iptables 1.8.9, with which the tests run.
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
# Docker and Debian have the same names for amd64, arm64 and s390x.
RUN hack/image/rootfs /rootfs /fairlead "$TARGETARCH"

# No shell, no package manager: both userlands of iptables, of which the node's is found out at the start, kmod, and the
# binary, also by the name that a DaemonSet of kube-proxy calls.
FROM scratch
COPY --from=build /rootfs /
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin
LABEL org.opencontainers.image.title="fairlead" \
      org.opencontainers.image.description="Guides connections to Kubernetes Services to their endpoints, in place of kube-proxy" \
      org.opencontainers.image.licenses="Apache-2.0"
ENTRYPOINT ["/usr/local/bin/fairlead"]
