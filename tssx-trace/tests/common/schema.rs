//! A check of JSON against the schema in `schema/`, for the keywords that it uses; any other keyword is an error, so that no
//! rule goes unchecked. The crates that know all of JSON Schema would double what the tracer's tests are built from.

use std::collections::BTreeSet;

use serde_json::Value;

/// The schema file.
pub(crate) struct Schema {
    root: Value,
}

/// Objects of an instance that have been matched, as `place/property`, for the test that nothing of the schema is unused.
pub(crate) type Used = BTreeSet<String>;

impl Schema {
    /// That of `discover`.
    pub(crate) fn read() -> Self {
        Self::parse(include_str!("../../schema/discover-3.json"))
    }

    /// That of `suggest`.
    pub(crate) fn of_suggest() -> Self {
        Self::parse(include_str!("../../schema/suggest-1.json"))
    }

    /// That of `explain`.
    pub(crate) fn of_explain() -> Self {
        Self::parse(include_str!("../../schema/explain-1.json"))
    }

    /// That of `verify`.
    pub(crate) fn of_verify() -> Self {
        Self::parse(include_str!("../../schema/verify-1.json"))
    }

    /// That of `bench`.
    pub(crate) fn of_calibration() -> Self {
        Self::parse(include_str!("../../schema/calibration-1.json"))
    }

    /// That of `doctor`.
    pub(crate) fn of_doctor() -> Self {
        Self::parse(include_str!("../../schema/doctor-2.json"))
    }

    fn parse(text: &str) -> Self {
        Self { root: serde_json::from_str(text).expect("the schema is JSON") }
    }

    /// Checks `value` against one definition.
    pub(crate) fn check(&self, definition: &str, value: &Value, used: &mut Used) -> Result<(), String> {
        self.matches(&self.root["$defs"][definition], definition, value, used)
    }

    /// Every property of every object of the schema, as `place/property`.
    pub(crate) fn properties(&self) -> Used {
        let mut all = Used::new();
        for (name, definition) in self.root["$defs"].as_object().expect("definitions") {
            collect(definition, name, &mut all);
        }
        all
    }

    fn matches(&self, schema: &Value, place: &str, value: &Value, used: &mut Used) -> Result<(), String> {
        let rules = schema.as_object().ok_or_else(|| format!("{place}: no schema"))?;
        for (keyword, rule) in rules {
            let holds = match keyword.as_str() {
                "description" | "required" | "additionalProperties" => true, // the last two with `properties`
                "const" => rule == value,
                "enum" => rule.as_array().expect("values").contains(value),
                "type" => match rule {
                    Value::Array(types) => types.iter().any(|name| is_a(value, name)),
                    name => is_a(value, name),
                },
                "minimum" => value.is_null() || value.as_i64().zip(rule.as_i64()).is_some_and(|(value, least)| value >= least),
                "$ref" => {
                    let name = rule.as_str().and_then(|rule| rule.strip_prefix("#/$defs/")).expect("a definition");
                    self.matches(&self.root["$defs"][name], name, value, used)?;
                    true
                }
                "items" => {
                    value.as_array().into_iter().flatten().try_for_each(|item| self.matches(rule, place, item, used))?;
                    true
                }
                "properties" => {
                    self.object(schema, place, value, used)?;
                    true
                }
                "anyOf" | "oneOf" => {
                    let count =
                        rule.as_array().expect("alternatives").iter().filter(|one| self.fits(one, place, value, used)).count();
                    if keyword == "oneOf" { count == 1 } else { count > 0 }
                }
                other => panic!("{place}: this check does not know the keyword {other}"),
            };
            if !holds {
                return Err(format!("{place}: {keyword} {rule} does not hold for {value}"));
            }
        }
        Ok(())
    }

    fn fits(&self, schema: &Value, place: &str, value: &Value, used: &mut Used) -> bool {
        let mut own = Used::new();
        let fits = self.matches(schema, &place_of(schema, place), value, &mut own).is_ok();
        if fits {
            used.append(&mut own);
        }
        fits
    }

    fn object(&self, schema: &Value, place: &str, value: &Value, used: &mut Used) -> Result<(), String> {
        assert_eq!(schema["additionalProperties"], Value::Bool(false), "{place} would let anything through");
        let object = value.as_object().ok_or_else(|| format!("{place}: {value} is no object"))?;
        for name in schema["required"].as_array().expect("names") {
            let name = name.as_str().expect("a name");
            object.get(name).ok_or_else(|| format!("{place}: no {name} in {value}"))?;
        }
        for (name, value) in object {
            let rule = schema["properties"].get(name).ok_or_else(|| format!("{place}: the schema has no field {name}"))?;
            used.insert(format!("{place}/{name}"));
            self.matches(rule, &format!("{place}/{name}"), value, used)?;
        }
        Ok(())
    }
}

/// Lines of one kind are told apart by their `record`.
fn place_of(schema: &Value, place: &str) -> String {
    schema["properties"]["record"]["const"].as_str().map_or_else(|| place.to_owned(), |record| format!("{place}:{record}"))
}

fn collect(schema: &Value, place: &str, all: &mut Used) {
    for (name, rule) in schema["properties"].as_object().into_iter().flatten() {
        assert!(rule["description"].is_string() || rule["$ref"].is_string(), "{place}/{name} is not documented");
        all.insert(format!("{place}/{name}"));
        collect(rule, &format!("{place}/{name}"), all);
    }
    for one in schema["oneOf"].as_array().into_iter().flatten() {
        collect(one, &place_of(one, place), all);
    }
}

fn is_a(value: &Value, name: &Value) -> bool {
    match name.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("this check does not know the type {other}"),
    }
}
