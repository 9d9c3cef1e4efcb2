//! W3C trace context: join the trace of the caller, hand ours on (<https://www.w3.org/TR/trace-context/>).

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator as _},
    trace::TraceContextExt as _,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

/// Makes `span` a child of the span that the headers name. Without an exporter it does nothing.
pub fn set_parent(span: &Span, headers: &HeaderMap) {
    if headers.contains_key(TRACEPARENT) {
        span.set_parent(TraceContextPropagator::new().extract(&Headers(headers)))
            .ok();
    }
}

/// Names `span` in the headers. Without an exporter the span has no name, and what is there stays: the caller's
/// context then passes through unchanged.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let context = span.context();
    let span = context.span();
    let named = span.span_context();
    if named.is_valid() {
        let flags = named.trace_flags().to_u8();
        let text = format!("00-{}-{}-{flags:02x}", named.trace_id(), named.span_id());
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

    const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn with_caller() -> HeaderMap {
        HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(CALLER))])
    }

    #[test]
    fn a_span_joins_the_callers_trace_and_hands_it_on() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("request");
            set_parent(&span, &with_caller());
            let mut onward = HeaderMap::new();
            inject(&span, &mut onward);
            let text = onward[TRACEPARENT].to_str().unwrap();
            assert!(
                text.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && text != CALLER,
                "{text}"
            );
        });
    }

    #[test]
    fn without_an_exporter_the_callers_context_passes_through() {
        let mut headers = with_caller();
        let span = tracing::info_span!("request");
        set_parent(&span, &headers);
        inject(&span, &mut headers);
        assert_eq!(headers[TRACEPARENT], CALLER);
    }

    #[test]
    fn a_broken_traceparent_is_no_parent() {
        let broken = HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static("00-zz-1-x"))]);
        set_parent(&tracing::info_span!("request"), &broken);
    }
}
