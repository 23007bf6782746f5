"""Ids of all rules of gitleaks v8.30.1, by how ours cover them."""

from __future__ import annotations

OWN_ROW = frozenset(
    {
        *("1password-secret-key", "1password-service-account-token", "adobe-client-secret", "age-secret-key"),
        *("alibaba-access-key-id", "anthropic-admin-api-key", "anthropic-api-key", "artifactory-api-key"),
        *("artifactory-reference-token", "atlassian-api-token", "authress-service-client-access-key"),
        *("aws-access-token", "aws-amazon-bedrock-api-key-long-lived", "aws-amazon-bedrock-api-key-short-lived"),
        *("azure-ad-client-secret", "clickhouse-cloud-api-secret-key", "clojars-api-token", "cloudflare-origin-ca-key"),
        *("curl-auth-user", "databricks-api-token", "defined-networking-api-token", "digitalocean-access-token"),
        *("digitalocean-pat", "digitalocean-refresh-token", "doppler-api-token", "dropbox-short-lived-api-token"),
        *("duffel-api-token", "dynatrace-api-token", "easypost-api-token", "easypost-test-api-token"),
        *("facebook-page-access-token", "flutterwave-encryption-key", "flutterwave-secret-key", "flyio-access-token"),
        *("frameio-api-token", "gcp-api-key", "github-app-token", "github-fine-grained-pat", "github-oauth"),
        *("github-pat", "github-refresh-token", "gitlab-cicd-job-token", "gitlab-deploy-token"),
        *("gitlab-feature-flag-client-token", "gitlab-feed-token", "gitlab-incoming-mail-token"),
        *("gitlab-kubernetes-agent-token", "gitlab-oauth-app-secret", "gitlab-pat", "gitlab-ptt", "gitlab-rrt"),
        *("gitlab-runner-authentication-token", "gitlab-scim-token", "gitlab-session-cookie", "grafana-api-key"),
        *("grafana-cloud-api-token", "grafana-service-account-token", "harness-api-key", "hashicorp-tf-api-token"),
        *("heroku-api-key-v2", "huggingface-access-token", "huggingface-organization-api-token", "infracost-api-token"),
        *("intra42-client-secret", "jwt", "jwt-base64", "linear-api-key", "mailchimp-api-key"),
        *("mailgun-private-api-token", "microsoft-teams-webhook", "netlify-access-token"),
        *("new-relic-browser-api-token", "new-relic-insert-key", "new-relic-user-api-key", "notion-api-token"),
        *("npm-access-token", "octopus-deploy-api-key", "openai-api-key", "openshift-user-token", "perplexity-api-key"),
        *("planetscale-api-token", "planetscale-oauth-token", "planetscale-password", "postman-api-token"),
        *("prefect-api-token", "private-key", "pulumi-api-token", "pypi-upload-token", "readme-api-token"),
        *("rubygems-api-token", "scalingo-api-token", "sendgrid-api-token", "sendinblue-api-token", "sentry-org-token"),
        *("sentry-user-token", "settlemint-application-access-token", "settlemint-personal-access-token"),
        *("settlemint-service-access-token", "shippo-api-token", "shopify-access-token", "shopify-custom-access-token"),
        *("shopify-private-app-access-token", "shopify-shared-secret", "sidekiq-secret", "slack-app-token"),
        *("slack-bot-token", "slack-config-refresh-token", "slack-legacy-token"),
        *("slack-legacy-workspace-token", "slack-user-token", "slack-webhook-url", "sonar-api-token"),
        *("sourcegraph-access-token", "square-access-token", "stripe-access-token", "telegram-bot-api-token"),
        *("twilio-api-key", "typeform-api-token", "vault-batch-token", "vault-service-token", "yandex-api-key"),
    }
)
"""Rules with a row of the same name."""

OTHER_ROW = {
    "curl-auth-header": "authorization",
    "gitlab-pat-routable": "gitlab-pat",
    "gitlab-runner-authentication-token-routable": "gitlab-runner-authentication-token",
    "slack-config-access-token": "slack-bot-token",
    "slack-legacy-bot-token": "slack-bot-token",
    "sidekiq-sensitive-url": "url-with-password",
}
"""Rules that a row of another name covers, or the header ``Authorization``."""

NAMED = frozenset(
    {
        *("adafruit-api-key", "airtable-api-key", "airtable-personnal-access-token", "algolia-api-key"),
        *("alibaba-secret-key", "asana-client-secret", "beamer-api-token", "bitbucket-client-secret"),
        *("bittrex-access-key", "bittrex-secret-key", "cisco-meraki-api-key", "cloudflare-api-key"),
        *("cloudflare-global-api-key", "codecov-access-token", "cohere-api-token", "coinbase-access-token"),
        *("confluent-access-token", "confluent-secret-key", "contentful-delivery-api-token"),
        *("datadog-access-token", "discord-api-token", "discord-client-secret", "droneci-access-token"),
        *("dropbox-api-token", "dropbox-long-lived-api-token", "etsy-access-token", "facebook-access-token"),
        *("facebook-secret", "fastly-api-token", "finicity-api-token", "finicity-client-secret"),
        *("finnhub-access-token", "flickr-access-token", "freemius-secret-key", "freshbooks-access-token"),
        *("generic-api-key", "gitter-access-token", "gocardless-api-token", "hashicorp-tf-password", "heroku-api-key"),
        *("hubspot-api-key", "intercom-api-key", "jfrog-api-key", "jfrog-identity-token", "kraken-access-token"),
        *("kucoin-access-token", "kucoin-secret-key", "launchdarkly-access-token", "linear-client-secret"),
        *("linkedin-client-secret", "lob-api-key", "looker-client-secret", "mailgun-signing-key", "mapbox-api-token"),
        *("mattermost-access-token", "maxmind-license-key", "messagebird-api-token", "nuget-config-password"),
        *("nytimes-access-token", "okta-access-token", "plaid-api-token", "plaid-secret-key", "privateai-api-token"),
        *("rapidapi-access-token", "sendbird-access-token", "sentry-access-token", "snyk-api-token"),
        *("squarespace-access-token", "sumologic-access-token", "travisci-access-token", "twitch-api-token"),
        *("twitter-access-secret", "twitter-access-token", "twitter-api-key", "twitter-api-secret"),
        *("twitter-bearer-token", "yandex-access-token", "yandex-aws-access-token", "zendesk-secret-key"),
    }
)
"""Rules for values without a form of their own: gitleaks asks for the vendor's name, ours for a secret's name."""

REFUSED = {
    "adobe-client-id": "public",
    "asana-client-id": "public",
    "bitbucket-client-id": "public",
    "discord-client-id": "public",
    "flutterwave-public-key": "public",
    "kubernetes-secret-yaml": "context",
    "linkedin-client-id": "public",
    "lob-pub-api-key": "public",
    "looker-client-id": "public",
    "mailgun-pub-key": "public",
    "messagebird-client-id": "public",
    "new-relic-user-api-id": "public",
    "pkcs12-file": "file",
    "plaid-client-id": "public",
    "sendbird-access-id": "public",
    "sumologic-access-id": "public",
}
"""Rules that are not covered, with the reason: a public id or key, a file's name, or the context of a whole file."""
