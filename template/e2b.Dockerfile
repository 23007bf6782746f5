# The sandbox's image. docs/TEMPLATE.md: the three ways to build it, and an image of your own.
#
# E2B's builders support one stage and plain steps only. They would make a CMD a start command for which each build
# waits, so there is none. After the last step E2B gives `user` passwordless sudo, empties passwords and makes
# /usr/local writable for all accounts; the steps below keep a hostile agent from using that. E2B's CLI drops every
# backslash in a command and reduces spaces to one, also in quotes: use neither.

# Not a python image: its interpreter is in /usr/local, where the agent could replace what root runs.
FROM debian:trixie-20260918-slim@sha256:a99cfc517144bc59b1978475ec53b46ecabec7e43635402ee5b77cc54cd1b20a

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates curl git jq less procps python3 python3-venv ripgrep unzip xz-utils \
    && rm -rf /var/lib/apt/lists/*

# The agent's account. E2B's current builder makes it before the first step.
RUN if ! id user 2>/dev/null; then useradd --create-home --shell /bin/bash user; fi \
    && install -d -o user -g user -m 0755 /home/user/work \
    && install -d -o root -g root -m 0700 /var/lib/sandspan

# The runner's requirements with the CLI: 400 MB that change only with their pins. Compiled with unchecked hashes, as a
# builder may not keep the sources' times. The CLI is executable and not readable: the kernel then denies the tools,
# which run as the same account, access to its memory, descriptors and environment.
COPY template/requirements.txt /opt/sandspan/requirements.txt
RUN python3 -m venv /opt/sandspan \
    && /opt/sandspan/bin/pip install --no-cache-dir --no-compile --no-deps --only-binary :all: \
        -r /opt/sandspan/requirements.txt \
    && /opt/sandspan/bin/pip check \
    && /opt/sandspan/bin/pip uninstall -y pip \
    && echo /opt/sandspan/runner > "$(echo /opt/sandspan/lib/python3.*/site-packages)/sandspan.pth" \
    && /opt/sandspan/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/sandspan/lib \
    && chmod -R go-w /opt/sandspan \
    && chmod 0711 /opt/sandspan/lib/python3.*/site-packages/claude_agent_sdk/_bundled/claude

# `user` cannot become root: no program is setuid or setgid, nor is a sudo or su that is installed later; root's password
# is locked; sshd admits no account; and /usr/local is not on the PATH of a root shell.
RUN for program in /usr/bin/sudo /usr/bin/su; do \
        dpkg-statoverride --force-statoverride-add --update --add root root 0700 "$program"; \
    done \
    && find / -xdev -type f -perm /6000 -exec chmod ug-s {} + \
    && passwd -l root \
    && mkdir -p /etc/ssh/sshd_config.d \
    && echo 'DenyUsers *' > /etc/ssh/sshd_config.d/00-sandspan.conf \
    && echo 'PermitEmptyPasswords no' >> /etc/ssh/sshd_config.d/00-sandspan.conf \
    && sed -i -e '1i [ "${EUID:-0}" != 0 ] || PATH=/usr/sbin:/usr/bin:/sbin:/bin' \
        -e 's|"/usr/local/sbin:/usr/local/bin:/usr/sbin:|"/usr/sbin:|' /etc/profile

# The runner itself, the only layer that changes with each version.
COPY agent_runner /opt/sandspan/runner/agent_runner
RUN chmod -R u=rwX,go=rX /opt/sandspan/runner \
    && /opt/sandspan/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/sandspan/runner \
    && /opt/sandspan/bin/python -I -m agent_runner doctor --image user

USER user
WORKDIR /home/user/work
