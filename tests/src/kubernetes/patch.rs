//! The patch types.
//!
//! Merge patch and JSON patch are complete. A strategic merge patch merges lists of objects by their usual key and
//! knows `$patch: delete|replace|merge`, `$deleteFromPrimitiveList` and `$setElementOrder` (only as a hint: elements
//! keep their place, new ones come last); `$retainKeys` keeps what it names. Apply is create-or-merge by the same
//! rules: there is no field ownership, so it never conflicts and never removes what another manager stopped sending.

use serde_json::{Map, Value};

/// Keys by which lists of objects are merged, first one that all elements have.
const MERGE_KEYS: &[&str] = &[
    "name",
    "containerPort",
    "port",
    "mountPath",
    "type",
    "ip",
    "uid",
    "topologyKey",
    "key",
];

/// RFC 7386.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = super::object::as_object(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Strategic merge as far as the module says.
pub fn strategic(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    let target = super::object::as_object(target);
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        *target = without_directives(patch);
        return;
    }
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        target.retain(|key, _| keep.iter().any(|kept| kept.as_str() == Some(key)));
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(have)), Value::Array(gone)) = (target.get_mut(list), value) {
                have.retain(|element| !gone.contains(element));
            }
        } else if key.starts_with('$') {
        } else if value.is_null() {
            target.remove(key);
        } else if let Value::Array(elements) = value {
            strategic_list(target.entry(key.clone()).or_insert(Value::Null), elements);
        } else {
            strategic(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    patch
        .iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn strategic_list(target: &mut Value, elements: &[Value]) {
    let directive = |element: &Value| {
        element
            .get("$patch")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let plain = |element: &Value| {
        element
            .as_object()
            .map_or_else(|| element.clone(), |o| Value::Object(without_directives(o)))
    };
    let key = MERGE_KEYS.iter().find(|key| {
        let mut wanted = elements.iter().filter(|e| directive(e) != "replace").peekable();
        wanted.peek().is_some() && wanted.all(|element| element.get(**key).is_some())
    });
    let replace = elements.iter().any(|element| directive(element) == "replace");
    let (Some(key), Value::Array(have), false) = (key, &mut *target, replace) else {
        let kept = elements
            .iter()
            .filter(|e| directive(e) != "delete")
            .filter(|e| e.get("$patch").is_none() || e.as_object().is_some_and(|o| o.len() > 1));
        *target = Value::Array(kept.map(plain).collect());
        return;
    };
    for element in elements {
        let place = have.iter().position(|old| old.get(key) == element.get(key));
        match (directive(element).as_str(), place) {
            ("delete", Some(place)) => drop(have.remove(place)),
            ("delete", None) => {}
            (_, Some(place)) => strategic(&mut have[place], element),
            (_, None) => have.push(plain(element)),
        }
    }
}

/// Why a JSON patch was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonPatchError {
    /// It is no patch.
    Malformed(String),
    /// It does not fit the object.
    DoesNotFit(String),
}

/// RFC 6902: all operations or none.
///
/// # Errors
/// When it is malformed or does not fit.
pub fn json_patch(target: &Value, patch: &Value) -> Result<Value, JsonPatchError> {
    let operations = patch
        .as_array()
        .ok_or_else(|| JsonPatchError::Malformed("a list is expected".to_owned()))?;
    let mut result = target.clone();
    for operation in operations {
        operate(&mut result, operation)?;
    }
    Ok(result)
}

fn operate(target: &mut Value, operation: &Value) -> Result<(), JsonPatchError> {
    let malformed = |what: &str| JsonPatchError::Malformed(format!("{what} in {operation}"));
    let text = |key: &str| {
        operation
            .get(key)
            .and_then(Value::as_str)
            .ok_or_else(|| malformed(&format!("no {key}")))
    };
    let value = || {
        operation
            .get("value")
            .cloned()
            .ok_or_else(|| malformed("no value"))
    };
    let (kind, path) = (text("op")?, text("path")?);
    let missing = |path: &str| JsonPatchError::DoesNotFit(format!("no such path: {path}"));
    match kind {
        "add" => insert(target, path, value()?),
        "remove" => remove(target, path).map(drop),
        "replace" => {
            *target.pointer_mut(path).ok_or_else(|| missing(path))? = value()?;
            Ok(())
        }
        "move" => {
            let moved = remove(target, text("from")?)?;
            insert(target, path, moved)
        }
        "copy" => {
            let from = text("from")?;
            let copied = target.pointer(from).cloned().ok_or_else(|| missing(from))?;
            insert(target, path, copied)
        }
        "test" if target.pointer(path) == Some(&value()?) => Ok(()),
        "test" => Err(JsonPatchError::DoesNotFit(format!("test of {path} failed"))),
        other => Err(malformed(&format!("unknown op {other}"))),
    }
}

fn parent<'a>(target: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), JsonPatchError> {
    let missing = || JsonPatchError::DoesNotFit(format!("no such path: {path}"));
    let (head, last) = path.rsplit_once('/').ok_or_else(missing)?;
    let last = last.replace("~1", "/").replace("~0", "~");
    Ok((target.pointer_mut(head).ok_or_else(missing)?, last))
}

fn insert(target: &mut Value, path: &str, value: Value) -> Result<(), JsonPatchError> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let missing = || JsonPatchError::DoesNotFit(format!("no such path: {path}"));
    match parent(target, path)? {
        (Value::Object(object), key) => drop(object.insert(key, value)),
        (Value::Array(list), key) if key == "-" => list.push(value),
        (Value::Array(list), key) => {
            let index = key
                .parse::<usize>()
                .ok()
                .filter(|index| *index <= list.len())
                .ok_or_else(missing)?;
            list.insert(index, value);
        }
        _ => return Err(missing()),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &str) -> Result<Value, JsonPatchError> {
    let missing = || JsonPatchError::DoesNotFit(format!("no such path: {path}"));
    match parent(target, path)? {
        (Value::Object(object), key) => object.remove(&key).ok_or_else(missing),
        (Value::Array(list), key) => {
            let index = key
                .parse::<usize>()
                .ok()
                .filter(|index| *index < list.len())
                .ok_or_else(missing)?;
            Ok(list.remove(index))
        }
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn merge_removes_with_null_and_replaces_lists() {
        let mut target = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        merge(&mut target, &json!({"a": {"b": null, "d": 3}, "l": [9]}));
        assert_eq!(target, json!({"a": {"c": 2, "d": 3}, "l": [9]}));
    }

    #[test]
    fn strategic_merges_containers_by_name() {
        let mut target = json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]});
        strategic(
            &mut target,
            &json!({
                "$setElementOrder/containers": [{"name": "a"}, {"name": "c"}],
                "containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}, {"name": "c"}, {"$patch": "delete", "name": "b"}]
            }),
        );
        assert_eq!(
            target,
            json!({"containers": [
                {"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}, {"name": "c"}
            ]})
        );
    }

    #[test]
    fn strategic_directives() {
        let mut target = json!({"finalizers": ["a", "b"], "strategy": {"type": "RollingUpdate", "rollingUpdate": {}}, "m": {"x": 1}});
        strategic(
            &mut target,
            &json!({
                "$deleteFromPrimitiveList/finalizers": ["a"],
                "strategy": {"$retainKeys": ["type"], "type": "Recreate"},
                "m": {"$patch": "replace", "y": 2}
            }),
        );
        assert_eq!(
            target,
            json!({"finalizers": ["b"], "strategy": {"type": "Recreate"}, "m": {"y": 2}})
        );
    }

    #[test]
    fn json_patch_operations() {
        let start = json!({"a": [1, 2], "b": {"c~/d": 1}});
        let patch = json!([
            {"op": "test", "path": "/a/0", "value": 1},
            {"op": "add", "path": "/a/1", "value": 9}, {"op": "add", "path": "/a/-", "value": 8},
            {"op": "remove", "path": "/a/0"}, {"op": "move", "from": "/b/c~0~1d", "path": "/e"},
            {"op": "copy", "from": "/e", "path": "/f"}, {"op": "replace", "path": "/f", "value": 5}
        ]);
        assert_eq!(
            json_patch(&start, &patch).unwrap(),
            json!({"a": [9, 2, 8], "b": {}, "e": 1, "f": 5})
        );
    }

    #[test]
    fn json_patch_faults() {
        let start = json!({"a": 1});
        for (patch, malformed) in [
            (json!({}), true),
            (json!([{"op": "add"}]), true),
            (json!([{"op": "dance", "path": "/a"}]), true),
            (json!([{"op": "test", "path": "/a", "value": 2}]), false),
            (json!([{"op": "remove", "path": "/b"}]), false),
            (json!([{"op": "add", "path": "/b/c", "value": 1}]), false),
        ] {
            let error = json_patch(&start, &patch).unwrap_err();
            assert_eq!(
                matches!(error, JsonPatchError::Malformed(_)),
                malformed,
                "{patch}"
            );
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..9_i64).prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 3, |inner| {
            proptest::collection::btree_map("[a-c]", inner, 0..3).prop_map(|map| json!(map))
        })
    }

    proptest! {
        /// What a merge patch was applied to once, it changes no more.
        #[test]
        fn merge_is_idempotent(mut target in values(), patch in values()) {
            merge(&mut target, &patch);
            let once = target.clone();
            merge(&mut target, &patch);
            prop_assert_eq!(once, target);
        }

        /// No patch breaks the double.
        #[test]
        fn strategic_ends(mut target in values(), patch in values()) {
            strategic(&mut target, &patch);
            let _ = json_patch(&target, &patch);
        }
    }
}
