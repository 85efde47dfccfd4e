# MarimoHub's configuration. `c` is provided; every setting is optional. All settings: marimohub --help-all
c = get_config()  # noqa: F821

# --- Data -----------------------------------------------------------------------------------------------------------
# The team's DuckDB warehouse. It is never opened, only copied; people work on read-only snapshots of it.
# Without this setting the hub makes a sample warehouse.
# c.MarimoHub.warehouse = "/srv/warehouse/team.duckdb"

# Each person's snapshot holds what the policy lets them see: nothing until an administrator has applied one (on the
# page "Data policy", or with `marimohub policy`). "off" shows the whole warehouse to all who may edit.
# c.MarimoHub.governance = "policy"

# Where the hub keeps its database, the notebooks, snapshots and users' files (created with mode 0700).
# c.MarimoHub.data_dir = "marimohub-data"

# --- Where people reach it ------------------------------------------------------------------------------------------
# By default only this machine can. To let others in, bind to an address of this machine, with TLS:
# c.JupyterHub.bind_url = "https://0.0.0.0:443"
# c.JupyterHub.ssl_cert = "/etc/ssl/hub/fullchain.pem"
# c.JupyterHub.ssl_key = "/etc/ssl/hub/privkey.pem"

# --- People ---------------------------------------------------------------------------------------------------------
# The first start prints a link to set up the first administrator. Others sign up and are approved.
# c.AccountAuthenticator.enable_signup = True
# c.AccountAuthenticator.minimum_password_length = 10
# What approved people may do until somebody gives them a role: "viewer", "editor" or "none".
# c.MarimoHub.default_role = "viewer"
# Any JupyterHub authenticator works instead, e.g. OAuth:
# c.JupyterHub.authenticator_class = "github"

# --- Locks ----------------------------------------------------------------------------------------------------------
# c.MarimoHub.lock_ttl = 900            # seconds after the last heartbeat
# c.MarimoHub.heartbeat_interval = 60   # seconds

# --- Database -------------------------------------------------------------------------------------------------------
# An SQLite file in the data folder unless set:
# c.JupyterHub.db_url = "postgresql+psycopg://user:password@host/marimohub"

# --- Servers and proxy ----------------------------------------------------------------------------------------------
# c.JupyterHub.spawner_class = "marimo-local"
# c.JupyterHub.proxy_class = "marimo-envoy"   # or "configurable-http-proxy" (needs Node)
# What one person's notebooks may use together:
# c.MarimoSpawner.memory_limit = "4G"
# c.MarimoSpawner.cpu_limit = 2
# c.MarimoSpawner.disk_limit = "20G"
# Sizes and environments to choose from (docs/configuration.md, "Profiles"):
# c.MarimoSpawner.profiles = [
#     {"name": "standard", "title": "Standard", "memory": "4G"},
#     {"name": "large", "title": "Large", "memory": "16G", "cpu": 4, "groups": ["analysts"]},
# ]
# Notebooks are confined. TCP ports that they may connect to (empty: the hub alone), and what they may read besides
# Python, the system's libraries, their own folders and snapshot:
# c.LocalMarimoSpawner.outbound_ports = "1-9999"
# c.LocalMarimoSpawner.extra_read = ["/srv/shared"]
# Leave servers and proxy running when the hub stops, so that people notice nothing of an update:
# c.JupyterHub.cleanup_servers = False
# c.JupyterHub.cleanup_proxy = False
