//! The sentence for a refused registration: what was said, and what the owner can do about it.

/// What the sentence speaks about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal<'a> {
    pub(crate) url: &'a str,
    pub(crate) status: u16,
    pub(crate) said: &'a str,
    pub(crate) cluster_name: &'a str,
    pub(crate) service_token_sent: bool,
}

/// Answers that another try cannot change. 409 belongs to them when it names no cluster.
pub(crate) fn is_final(status: u16) -> bool {
    matches!(status, 400 | 401 | 403 | 409 | 422)
}

/// One sentence, no secrets.
pub(crate) fn sentence(refusal: Refusal<'_>) -> String {
    let Refusal {
        url,
        status,
        said,
        cluster_name,
        service_token_sent,
    } = refusal;
    let said = if said.is_empty() {
        String::new()
    } else {
        format!(": {said}")
    };
    let lower = said.to_lowercase();
    let about_service_token =
        !service_token_sent && (lower.contains("service_token") || lower.contains("service token"));
    let advice = match status {
        _ if about_service_token => {
            "it asks for k8s_service_token, which is sent only when the owner gives one: set \
             kubernetes.service_token_file (PIPEOPS_KUBERNETES_SERVICE_TOKEN_FILE)"
                .to_owned()
        }
        401 => "the token is not valid there: put a valid one into pipeops.token (PIPEOPS_TOKEN) or \
                pipeops.token_file (PIPEOPS_TOKEN_FILE), and check pipeops.api_url (PIPEOPS_API_URL)"
            .to_owned(),
        403 => format!(
            "the token may not register cluster {cluster_name:?}: use a token of the right workspace, or change \
             agent.cluster_name (PIPEOPS_CLUSTER_NAME)"
        ),
        409 => format!(
            "cluster {cluster_name:?} exists already and is not handed to this agent: choose another \
             agent.cluster_name (PIPEOPS_CLUSTER_NAME), or remove the old cluster there"
        ),
        _ => format!(
            "it does not accept what is sent about cluster {cluster_name:?}: check agent.cluster_name, agent.id and \
             agent.labels"
        ),
    };
    format!("the control plane {url} refused the registration ({status}{said}); {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        let refusal = Refusal {
            url: "https://cp.example",
            status: 401,
            said: "invalid token",
            cluster_name: "prod",
            service_token_sent: false,
        };
        insta::assert_snapshot!(sentence(refusal), @"the control plane https://cp.example refused the registration (401: invalid token); the token is not valid there: put a valid one into pipeops.token (PIPEOPS_TOKEN) or pipeops.token_file (PIPEOPS_TOKEN_FILE), and check pipeops.api_url (PIPEOPS_API_URL)");
        for (status, words) in [
            (403, "PIPEOPS_CLUSTER_NAME"),
            (409, "exists already"),
            (422, "agent.labels"),
        ] {
            let text = sentence(Refusal { status, ..refusal });
            assert!(text.contains(words) && !text.contains('\n'), "{text}");
        }
        let said = "k8s_service_token is required";
        let text = sentence(Refusal {
            status: 400,
            said,
            ..refusal
        });
        assert!(text.contains("PIPEOPS_KUBERNETES_SERVICE_TOKEN_FILE"), "{text}");
    }

    #[test]
    fn only_final_answers_are_final() {
        assert!([400, 401, 403, 409, 422].into_iter().all(is_final));
        assert!(
            ![200, 301, 404, 408, 425, 426, 429, 500, 502, 503]
                .into_iter()
                .any(is_final)
        );
    }
}
