//! The service `Process`, which every container serves in the same way.

use std::fmt;

use tonic::{Request, Response, Status};

use crate::v1::{
    Build, DrainRequest, DrainResponse, GetBuildRequest, SetLogFilterRequest, SetLogFilterResponse,
    process_server::Process,
};

type SetFilter = dyn Fn(&str) -> Result<String, String> + Send + Sync;
type StartDrain = dyn Fn(String) + Send + Sync;

/// Serves `GetBuild`, `SetLogFilter` and `Drain` for one process.
///
/// What the calls do is handed in as functions, so that this crate knows nothing of the process around it.
pub struct ProcessService {
    build: Build,
    set_filter: Box<SetFilter>,
    drain: Box<StartDrain>,
}

impl ProcessService {
    /// `set_filter` installs a log filter and returns the one before it, or why it is refused;
    /// `drain` begins the drain and returns at once.
    pub fn new(
        build: Build,
        set_filter: impl Fn(&str) -> Result<String, String> + Send + Sync + 'static,
        drain: impl Fn(String) + Send + Sync + 'static,
    ) -> Self {
        Self {
            build,
            set_filter: Box::new(set_filter),
            drain: Box::new(drain),
        }
    }
}

impl fmt::Debug for ProcessService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessService")
            .field("build", &self.build)
            .finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl Process for ProcessService {
    async fn get_build(&self, _request: Request<GetBuildRequest>) -> Result<Response<Build>, Status> {
        Ok(Response::new(self.build.clone()))
    }

    async fn set_log_filter(
        &self,
        request: Request<SetLogFilterRequest>,
    ) -> Result<Response<SetLogFilterResponse>, Status> {
        let filter = request.into_inner().filter;
        let previous = (self.set_filter)(&filter)
            .map_err(|why| Status::invalid_argument(format!("log filter \"{filter}\": {why}")))?;
        Ok(Response::new(SetLogFilterResponse { previous }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let reason = request.into_inner().reason;
        (self.drain)(if reason.is_empty() {
            "asked over gRPC".to_owned()
        } else {
            reason
        });
        Ok(Response::new(DrainResponse {}))
    }
}
