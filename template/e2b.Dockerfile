# The sandbox's image. docs/TEMPLATE.md: the three ways to build it, and an image of your own.
#
# One stage and plain steps only, as E2B's builders read no more than that, and no CMD: they would make it a start
# command that each build waits for. After the last step E2B gives `user` passwordless sudo, empties passwords and
# makes /usr/local writable for everybody. What follows is so made that none of it helps a hostile agent.
# E2B's CLI drops every backslash within a command and all space but one, quoted or not: do without both.

# Not a python image: its interpreter lies in /usr/local, where the agent could replace what root runs.
FROM debian:trixie-20260918-slim@sha256:a99cfc517144bc59b1978475ec53b46ecabec7e43635402ee5b77cc54cd1b20a

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates curl git jq less procps python3 python3-venv ripgrep unzip xz-utils \
    && rm -rf /var/lib/apt/lists/*

# The account of the agent, which E2B's current builder has made before the first step.
RUN if ! id user 2>/dev/null; then useradd --create-home --shell /bin/bash user; fi \
    && install -d -o user -g user -m 0755 /home/user/work \
    && install -d -o root -g root -m 0700 /var/lib/sandspan

# What the runner needs, the CLI among it: 400 MB that change only with their pins. Compiled without a look back at the
# sources, whose times a builder may not keep. The CLI is executable and not readable: the kernel then keeps its
# memory, descriptors and environment from the tools, which run under the same account.
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

# No way from `user` to root: no program lends its rights, not even a sudo or su that is installed later; root has no
# empty password; sshd admits nobody; and a shell of root looks for nothing in /usr/local.
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
